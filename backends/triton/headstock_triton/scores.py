"""Choosing experts by scores, a bias on the choice and groups, and adding what shared ones make.

Shapes: T tokens, E experts, G groups of S experts each, k experts of a token, D hidden size.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.moe import NO_EXPERT
from headstock.ops.routing import MAX_GROUP_BEST, SQRT_SOFTPLUS, Routing
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

BLOCK_D = 1024
"""Features that a program adds."""
SCORES = {"softmax": 0, "sigmoid": 1, SQRT_SOFTPLUS: 2}
"""What logits are made into, as kernels have it."""


@triton.jit
def scores_of(logit, highest, whole, SCORES: tl.constexpr):
    """Return the scores of logits; of softmax by their row's highest, and its sum of powers."""
    if SCORES == 1:
        return 1.0 / (1.0 + tl.exp(-logit))
    if SCORES == 2:
        soft = tl.where(logit > 20.0, logit, tl.log(1.0 + tl.exp(tl.minimum(logit, 20.0))))
        return tl.sqrt(soft)
    return tl.exp(logit - highest) / whole


@triton.jit
def route_experts_kernel(
    logits,
    bias,
    weights,
    experts,
    stride,
    factor,
    G: tl.constexpr,
    S: tl.constexpr,
    K: tl.constexpr,
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCORES: tl.constexpr,
    IS_NORMALIZED: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Choose K experts of row ``program_id(0)``; scores lie as [G, S]."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    g = tl.arange(0, BLOCK_G)
    s = tl.arange(0, BLOCK_S)
    expert_GS = g[:, None] * S + s[None, :]
    inside_GS = (g < G)[:, None] & (s < S)[None, :]
    lowest = float("-inf")
    logit_GS = tl.load(logits + row * stride + expert_GS, mask=inside_GS, other=lowest)
    logit_GS = logit_GS.to(tl.float32)
    has_nan = tl.sum(tl.sum((logit_GS != logit_GS).to(tl.int32), axis=1), axis=0) > 0
    logit_GS = tl.where(logit_GS != logit_GS, 0.0, logit_GS)
    highest = tl.max(tl.max(logit_GS, axis=1), axis=0)
    whole = tl.sum(tl.sum(tl.exp(logit_GS - highest), axis=1), axis=0)
    score_GS = scores_of(logit_GS, highest, whole, SCORES)
    biased_GS = score_GS
    if HAS_BIAS:
        biased_GS += tl.load(bias + expert_GS, mask=inside_GS, other=0.0)
    biased_GS = tl.where(inside_GS, biased_GS, lowest)
    if G > 1:
        of_group_G = tl.max(biased_GS, axis=1)
        if BEST == 2:
            at_G = tl.min(tl.where(biased_GS == of_group_G[:, None], s[None, :], S), axis=1)
            rest_GS = tl.where(s[None, :] == at_G[:, None], lowest, biased_GS)
            of_group_G += tl.max(rest_GS, axis=1)
        is_kept_G = tl.zeros((BLOCK_G,), tl.int32)
        for _ in tl.static_range(KEPT):  # pyright: ignore[reportGeneralTypeIssues]
            best = tl.max(of_group_G, axis=0)
            at = tl.min(tl.where((of_group_G == best) & (is_kept_G == 0), g, BLOCK_G), axis=0)
            is_kept_G = tl.where(g == at, 1, is_kept_G)
            of_group_G = tl.where(g == at, lowest, of_group_G)
        biased_GS = tl.where((is_kept_G > 0)[:, None], biased_GS, lowest)
    k = tl.arange(0, BLOCK_K)
    weight_k = tl.zeros((BLOCK_K,), tl.float32)
    chosen_k = tl.zeros((BLOCK_K,), tl.int32)
    for place in tl.static_range(K):  # pyright: ignore[reportGeneralTypeIssues]
        best = tl.max(tl.max(biased_GS, axis=1), axis=0)
        at = tl.min(tl.min(tl.where(biased_GS == best, expert_GS, G * S), axis=1), axis=0)
        is_it_GS = (expert_GS == at) & inside_GS
        score = tl.sum(tl.sum(tl.where(is_it_GS, score_GS, 0.0), axis=1), axis=0)
        weight_k = tl.where(k == place, score, weight_k)
        chosen_k = tl.where(k == place, at, chosen_k)
        biased_GS = tl.where(is_it_GS, lowest, biased_GS)
    if IS_NORMALIZED:
        weight_k = weight_k / (tl.sum(weight_k, axis=0) + 1e-20)
    at_k = row * K + k
    tl.store(weights + at_k, tl.where(has_nan, 0.0, weight_k * factor), mask=k < K)
    tl.store(experts + at_k, tl.where(has_nan, NONE, chosen_k), mask=k < K)


@triton.jit
def route_by_token_kernel(
    logits,
    ids,
    table,
    weights,
    experts,
    stride,
    factor,
    E,
    K: tl.constexpr,
    SCORES: tl.constexpr,
    IS_NORMALIZED: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NONE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Weigh the experts that the table has for the id of token ``program_id(0)``."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    expert_E = tl.arange(0, BLOCK_E)
    k = tl.arange(0, BLOCK_K)
    logits += row * stride
    logit_E = tl.load(logits + expert_E, mask=expert_E < E, other=float("-inf")).to(tl.float32)
    has_nan = tl.sum((logit_E != logit_E).to(tl.int32), axis=0) > 0
    logit_E = tl.where(logit_E != logit_E, 0.0, logit_E)
    highest = tl.max(logit_E, axis=0)
    whole = tl.sum(tl.exp(logit_E - highest), axis=0)
    chosen_k = tl.load(table + tl.load(ids + row) * K + k, mask=k < K, other=0)
    logit_k = tl.load(logits + chosen_k, mask=k < K, other=0.0).to(tl.float32)
    weight_k = tl.where(k < K, scores_of(logit_k, highest, whole, SCORES), 0.0)
    if IS_NORMALIZED:
        weight_k = weight_k / (tl.sum(weight_k, axis=0) + 1e-20)
    at_k = row * K + k
    tl.store(weights + at_k, tl.where(has_nan, 0.0, weight_k * factor), mask=k < K)
    tl.store(experts + at_k, tl.where(has_nan, NONE, chosen_k), mask=k < K)


@triton.jit
def add_shared_kernel(
    routed,
    shared,
    gate,
    routed_stride,
    shared_stride,
    gate_stride,
    D,
    HAS_GATE: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add to some features of row ``program_id(0)``, in place."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = d < D
    at = routed + row * routed_stride + d
    y = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(shared + row * shared_stride + d, mask=inside, other=0.0).to(tl.float32)
    if HAS_GATE:
        x = x / (1.0 + tl.exp(-tl.load(gate + row * gate_stride).to(tl.float32)))
    tl.store(at, (y + x).to(routed.dtype.element_ty), mask=inside)


class Scores:
    """The ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def route_experts(
        self, logits_TE: Tensor, bias_E: Tensor | None, *, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.routing.route_experts`."""
        assert routing.group_best <= MAX_GROUP_BEST, f"{routing.group_best} of a group"
        if logits_TE.stride(1) != 1:
            logits_TE = logits_TE.contiguous()
        num_tokens, num_experts = logits_TE.shape
        shape, where = (num_tokens, routing.k), logits_TE.device
        weights_Tk = torch.empty(shape, dtype=torch.float32, device=where)
        experts_Tk = torch.empty(shape, dtype=torch.int32, device=where)
        size = num_experts // routing.num_groups
        if num_tokens:
            route_experts_kernel[(num_tokens,)](
                logits_TE,
                logits_TE if bias_E is None else bias_E,
                weights_Tk,
                experts_Tk,
                logits_TE.stride(0),
                routing.factor,
                G=routing.num_groups,
                S=size,
                K=routing.k,
                KEPT=routing.groups_kept,
                BEST=routing.group_best,
                HAS_BIAS=bias_E is not None,
                SCORES=SCORES[routing.scores],
                IS_NORMALIZED=routing.is_normalized,
                BLOCK_G=next_power_of_2(routing.num_groups),
                BLOCK_S=next_power_of_2(size),
                BLOCK_K=next_power_of_2(routing.k),
                NONE=NO_EXPERT,
                **self._target.launch(1),
            )
        return weights_Tk, experts_Tk

    def route_by_token(
        self, logits_TE: Tensor, ids_T: Tensor, experts_Vk: Tensor, *, routing: Routing
    ) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.routing.route_by_token`."""
        if logits_TE.stride(1) != 1:
            logits_TE = logits_TE.contiguous()
        (num_tokens, num_experts), k = logits_TE.shape, experts_Vk.shape[1]
        where = logits_TE.device
        weights_Tk = torch.empty((num_tokens, k), dtype=torch.float32, device=where)
        experts_Tk = torch.empty((num_tokens, k), dtype=torch.int32, device=where)
        if num_tokens:
            route_by_token_kernel[(num_tokens,)](
                logits_TE,
                ids_T.contiguous(),
                experts_Vk.contiguous(),
                weights_Tk,
                experts_Tk,
                logits_TE.stride(0),
                routing.factor,
                num_experts,
                K=k,
                SCORES=SCORES[routing.scores],
                IS_NORMALIZED=routing.is_normalized,
                BLOCK_E=next_power_of_2(num_experts),
                BLOCK_K=next_power_of_2(k),
                NONE=NO_EXPERT,
                **self._target.launch(1),
            )
        return weights_Tk, experts_Tk

    def add_shared(self, routed_TD: Tensor, shared_TD: Tensor, gate_T1: Tensor | None) -> Tensor:
        """See :func:`headstock.ops.routing.add_shared`; adds in place."""
        num_tokens, size = routed_TD.shape
        shared_TD = shared_TD if shared_TD.stride(1) == 1 else shared_TD.contiguous()
        assert routed_TD.stride(1) == 1, "rows are not contiguous"
        if num_tokens:
            add_shared_kernel[(num_tokens, cdiv(size, BLOCK_D))](
                routed_TD,
                shared_TD,
                routed_TD if gate_T1 is None else gate_T1,
                routed_TD.stride(0),
                shared_TD.stride(0),
                0 if gate_T1 is None else gate_T1.stride(0),
                size,
                HAS_GATE=gate_T1 is not None,
                BLOCK=BLOCK_D,
                **self._target.launch(4),
            )
        return routed_TD
