"""Experts by sigmoid scores with a bias on the choice: what families since DeepSeek V3 share.

Source: DeepSeek-AI 2024, "DeepSeek-V3", section 2.1.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from headstock.graph.context import Context
from headstock.graph.feed_forward import GatedMLP
from headstock.graph.module import Module
from headstock.graph.moe import QWEN_NAMES
from headstock.graph.routed_moe import RoutedMoE
from headstock.ops.moe import Matrix
from headstock.ops.routing import Routing

BIAS_LEAF = "gate.e_score_correction_bias"


class SigmoidExperts(Protocol):
    """What a configuration says of them, in the keys of Hugging Face."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def moe_intermediate_size(self) -> int: ...
    @property
    def n_routed_experts(self) -> int: ...
    @property
    def n_shared_experts(self) -> int: ...
    @property
    def num_experts_per_tok(self) -> int: ...
    @property
    def n_group(self) -> int: ...
    @property
    def topk_group(self) -> int: ...
    @property
    def norm_topk_prob(self) -> bool: ...
    @property
    def routed_scaling_factor(self) -> float: ...


def sigmoid_moe(
    ctx: Context,
    c: SigmoidExperts,
    *,
    names: Mapping[Matrix, str] = QWEN_NAMES,
    bias_leaf: str = BIAS_LEAF,
) -> Module:
    """Return the feed-forward layer of a layer with experts, whose matrices are ``names``."""
    routing = Routing(
        k=c.num_experts_per_tok,
        scores="sigmoid",
        is_normalized=c.norm_topk_prob,
        num_groups=c.n_group,
        groups_kept=c.topk_group,
        group_best=2 if c.n_group > 1 else 1,
        factor=c.routed_scaling_factor,
    )
    return routed_moe(ctx, c, routing, bias_leaf=bias_leaf, names=names)


def routed_moe(
    ctx: Context,
    c: SigmoidExperts,
    routing: Routing,
    *,
    bias_leaf: str,
    names: Mapping[Matrix, str] = QWEN_NAMES,
) -> Module:
    """Return experts chosen by ``routing``, with the shared ones that the configuration has."""
    size, between, shared = c.hidden_size, c.moe_intermediate_size, None
    if c.n_shared_experts:
        shared = GatedMLP(ctx, size, between * c.n_shared_experts)
        shared.alias = "shared_experts"
    sizes = (size, between, c.n_routed_experts)
    return RoutedMoE(ctx, *sizes, routing, bias_leaf=bias_leaf, shared=shared, names=names)
