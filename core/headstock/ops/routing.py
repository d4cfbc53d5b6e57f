"""Ways of choosing experts beyond the k highest logits, and what shared experts add.

Shapes: T tokens, E experts, G groups of them, k experts of a token, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from headstock.ops.base import op
from headstock.ops.moe import NO_EXPERT

SQRT_SOFTPLUS = "sqrt_softplus"
"""The feature, and the kind of scores, that a score is the root of softplus of its logit."""

MAX_GROUP_BEST = 2
"""Most experts of a group whose scores make the group's: implementations hold so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """How a token's experts and their weights follow from the router's logits.

    Attributes:
        k: Experts of a token.
        scores: What makes scores of the logits.
        is_normalized: Whether the weights of a token sum to ``factor``; else they are the scores of
            its experts, times it.
        num_groups: G: groups of neighbouring experts, equally many in each.
        groups_kept: Groups that a token's experts come from: those of the highest group scores.
        group_best: A group's score is the sum of so many of its best experts' scores.
        factor: Multiplies the weights.
    """

    k: int
    scores: Literal["softmax", "sigmoid", "sqrt_softplus"] = "softmax"
    is_normalized: bool = False
    num_groups: int = 1
    groups_kept: int = 1
    group_best: int = 1
    factor: float = 1.0

    @property
    def features(self) -> frozenset[str]:
        """What :func:`route_experts` is asked for beyond the plain op."""
        return frozenset({SQRT_SOFTPLUS} & {self.scores})

    @property
    def is_plain(self) -> bool:
        """Whether :func:`headstock.ops.moe.route_topk` does it, where no bias is asked."""
        return self.scores == "softmax" and self.num_groups == 1 and self.factor == 1.0


@op(features=frozenset({SQRT_SOFTPLUS}))
def route_experts(
    logits_TE: Tensor, bias_E: Tensor | None, *, routing: Routing
) -> tuple[Tensor, Tensor]:
    """Choose experts by biased scores within the best groups; weigh them by unbiased scores.

    Of equal scores the lower expert, or group, wins. Rows with NaN, which only padding has, go
    nowhere. Resolved with the sizes ``num_experts``, ``experts_per_token`` and ``num_groups``.

    Args:
        logits_TE: Of the router, in the model's dtype. [T, E]
        bias_E: Added to scores when experts are chosen, not when they are weighed; None: nothing.
            float32. [E]
        routing: How to choose.

    Returns:
        Weights, float32 [T, k], and experts, int32 [T, k], of the best biased score first. 0 and
        :data:`~headstock.ops.moe.NO_EXPERT` in rows with NaN.

    Source:
        DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2; DeepseekV3TopkRouter and
        DeepseekV2TopkRouter of transformers.
    """
    scores_TE = _scores(logits_TE, routing)
    biased_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if routing.num_groups > 1:
        grouped_TGg = biased_TE.unflatten(1, (routing.num_groups, -1))
        group_TG = grouped_TGg.topk(routing.group_best, dim=2).values.sum(dim=2)
        kept_TK = group_TG.sort(dim=1, descending=True, stable=True).indices
        is_kept_TG = torch.zeros_like(group_TG, dtype=torch.bool)
        is_kept_TG = is_kept_TG.scatter(1, kept_TK[:, : routing.groups_kept], True)
        grouped_TGg = grouped_TGg.masked_fill(~is_kept_TG.unsqueeze(2), -torch.inf)
        biased_TE = grouped_TGg.flatten(1)
    experts_TE = biased_TE.sort(dim=1, descending=True, stable=True).indices
    experts_Tk = experts_TE[:, : routing.k]
    weights_Tk = _weights(scores_TE, experts_Tk, routing)
    has_nan_T1 = logits_TE.isnan().any(dim=1, keepdim=True)
    weights_Tk = weights_Tk.masked_fill(has_nan_T1, 0)
    return weights_Tk, experts_Tk.to(torch.int32).masked_fill(has_nan_T1, NO_EXPERT)


@op(features=frozenset({SQRT_SOFTPLUS}))
def route_by_token(
    logits_TE: Tensor, ids_T: Tensor, experts_Vk: Tensor, *, routing: Routing
) -> tuple[Tensor, Tensor]:
    """Take the experts that a table has for each token's id; weigh them by their scores.

    Rows with NaN, which only padding has, go nowhere. Resolved with the sizes ``num_experts`` and
    ``experts_per_token``.

    Args:
        logits_TE: Of the router, in the model's dtype. [T, E]
        ids_T: Ids of the tokens. Of padding, any that the table has. int64. [T]
        experts_Vk: Experts of each id. int32. [V, k]
        routing: How to weigh; groups do not count.

    Returns:
        As :func:`route_experts` returns them, in the table's order.

    Source:
        DeepSeek-AI 2026, "DeepSeek-V4", section 2.1; DeepseekV4HashRouter of transformers.
    """
    experts_Tk = experts_Vk[ids_T]
    weights_Tk = _weights(_scores(logits_TE, routing), experts_Tk.long(), routing)
    has_nan_T1 = logits_TE.isnan().any(dim=1, keepdim=True)
    weights_Tk = weights_Tk.masked_fill(has_nan_T1, 0)
    return weights_Tk, experts_Tk.masked_fill(has_nan_T1, NO_EXPERT)


def _scores(logits_TE: Tensor, routing: Routing) -> Tensor:
    """Return what the router's logits are made into. float32. [T, E]"""
    logits_TE = logits_TE.float()
    if routing.scores == "softmax":
        return logits_TE.softmax(dim=1)
    if routing.scores == "sigmoid":
        return logits_TE.sigmoid()
    return torch.nn.functional.softplus(logits_TE).sqrt()


def _weights(scores_TE: Tensor, experts_Tk: Tensor, routing: Routing) -> Tensor:
    """Return the weights of each token's experts. float32. [T, k]"""
    weights_Tk = scores_TE.gather(1, experts_Tk)
    if routing.is_normalized:
        # A score may be too small for a float; all of a token's may.
        weights_Tk = weights_Tk / (weights_Tk.sum(dim=1, keepdim=True) + 1e-20)
    return weights_Tk * routing.factor


@op()
def add_shared(routed_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
    """Add what the experts that every token has make of it.

    An implementation may write into ``routed_TD`` and return that.

    Args:
        routed_TD: Of the experts that were chosen. [T, D]
        shared_TD: Of the shared ones, in the same dtype. [T, D]
        gate_T1: Logits whose sigmoid weighs the shared ones; None: they count in full. [T, 1]

    Returns:
        [T, D]
    """
    if gate_T1 is None:
        return routed_TD + shared_TD
    weighed_TD = gate_T1.float().sigmoid() * shared_TD.float()
    return (routed_TD.float() + weighed_TD).to(routed_TD.dtype)


@op()
def weigh_experts(weights_Tk: Tensor, experts_Tk: Tensor, scale_E: Tensor) -> Tensor:
    """Multiply the weights of a token's experts by what each expert's outputs are scaled by.

    Args:
        weights_Tk: float32. [T, k]
        experts_Tk: As :func:`route_experts` returns them. int32. [T, k]
        scale_E: float32. [E]

    Returns:
        0 where there is no expert. float32. [T, k]

    Source:
        ``Gemma4TextRouter`` of Hugging Face transformers.
    """
    scaled_Tk = weights_Tk * scale_E[experts_Tk.clamp(min=0).long()]
    return scaled_Tk.masked_fill(experts_Tk == NO_EXPERT, 0)


@op()
def drop_identities(experts_Tk: Tensor, *, num_experts: int) -> Tensor:
    """Return experts without those that compute nothing: numbers from ``num_experts`` on.

    Args:
        experts_Tk: As :func:`route_experts` returns them, among more than there are. int32. [T, k]
        num_experts: Experts that have matrices.

    Returns:
        :data:`~headstock.ops.moe.NO_EXPERT` in their place. int32. [T, k]
    """
    return experts_Tk.masked_fill(experts_Tk >= num_experts, NO_EXPERT)


@op()
def add_identities(
    routed_TD: Tensor, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, *, num_experts: int
) -> Tensor:
    """Add what experts make of a token that return it as it came: itself, by their weights.

    An implementation may write into ``routed_TD`` and return that.

    Args:
        routed_TD: Of the experts that have matrices; of tokens that chose none of these: anything,
            finite or not. [T, D]
        x_TD: What went in, in the same dtype. [T, D]
        weights_Tk: float32. [T, k]
        experts_Tk: As :func:`route_experts` returns them, among more than there are. int32. [T, k]
        num_experts: Experts that have matrices.

    Returns:
        In the dtype of ``x_TD``. [T, D]

    Source:
        Meituan 2025, "LongCat-Flash", section 2.1; LongcatFlashExperts of transformers.
    """
    is_own_Tk = experts_Tk >= num_experts
    share_T1 = weights_Tk.masked_fill(~is_own_Tk, 0).sum(dim=1, keepdim=True)
    others_TD = routed_TD.masked_fill(is_own_Tk.all(dim=1, keepdim=True), 0)
    return (others_TD.float() + share_T1 * x_TD.float()).to(x_TD.dtype)
