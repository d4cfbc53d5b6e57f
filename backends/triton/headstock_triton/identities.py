"""Experts that return a token as it came, and ids that a table has no row for, or another has.

Shapes: T tokens, k experts of a token, D hidden size, K rows.
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
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

BLOCK = 1024
"""Numbers that a program computes."""


@triton.jit
def replace_kernel(
    ids, out, LIMIT, COUNT, FILL: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Copy BLOCK whole numbers; those from LIMIT on become FILL."""
    begin(PDL)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(ids + at, mask=at < COUNT, other=0)
    tl.store(out + at, tl.where(number >= LIMIT, FILL, number), mask=at < COUNT)


@triton.jit
def rows_kernel(
    x, ids, table, out, x_stride, FIRST, COUNT, D, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Copy some features of token ``program_id(0)``, or of its id's row in the table."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(ids + token) - FIRST
    is_there = (place >= 0) & (place < COUNT)
    inside = d < D
    row_D = tl.load(table + place * D + d, mask=inside & is_there, other=0.0)
    x_D = tl.load(x + token * x_stride + d, mask=inside, other=0.0)
    tl.store(out + token * D + d, tl.where(is_there, row_D, x_D), mask=inside)


@triton.jit
def identities_kernel(
    routed,
    x,
    weights,
    experts,
    out,
    routed_stride,
    x_stride,
    D,
    NUM_EXPERTS,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Add token ``program_id(0)`` itself, by the weights of its identities, to some features."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    k = tl.arange(0, BLOCK_K)
    # Past the last expert stand identities of no weight: they do not count as experts.
    expert_k = tl.load(experts + token * K + k, mask=k < K, other=2147483647)
    weight_k = tl.load(weights + token * K + k, mask=k < K, other=0.0)
    is_own_k = expert_k >= NUM_EXPERTS
    share = tl.sum(tl.where(is_own_k, weight_k, 0.0), axis=0)
    has_others = tl.sum((expert_k < NUM_EXPERTS).to(tl.int32), axis=0) > 0
    inside = d < D
    routed_D = tl.load(routed + token * routed_stride + d, mask=inside & has_others, other=0.0)
    x_D = tl.load(x + token * x_stride + d, mask=inside, other=0.0)
    out_D = routed_D.to(tl.float32) + share * x_D.to(tl.float32)
    tl.store(out + token * D + d, out_D.to(out.dtype.element_ty), mask=inside)


class Identities:
    """The ops on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def drop_identities(self, experts_Tk: Tensor, *, num_experts: int) -> Tensor:
        """See :func:`headstock.ops.routing.drop_identities`."""
        return self._replace(experts_Tk, num_experts, NO_EXPERT)

    def known_ids(self, ids_T: Tensor, *, size: int) -> Tensor:
        """See :func:`headstock.ops.embedding.known_ids`."""
        return self._replace(ids_T, size, 0)

    def put_rows(self, x_TD: Tensor, ids_T: Tensor, rows_KD: Tensor, *, first: int) -> Tensor:
        """See :func:`headstock.ops.embedding.put_rows`."""
        x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
        num_tokens, size = x_TD.shape
        out_TD = torch.empty((num_tokens, size), dtype=x_TD.dtype, device=x_TD.device)
        rows_kernel[(num_tokens, cdiv(size, BLOCK))](
            x_TD,
            ids_T.contiguous(),
            rows_KD.contiguous(),
            out_TD,
            x_TD.stride(0),
            first,
            rows_KD.shape[0],
            size,
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return out_TD

    def _replace(self, ids: Tensor, limit: int, fill: int) -> Tensor:
        ids = ids.contiguous()
        out = torch.empty_like(ids)
        replace_kernel[(cdiv(ids.numel(), BLOCK),)](
            ids, out, limit, ids.numel(), FILL=fill, BLOCK=BLOCK, **self._target.launch(4)
        )
        return out

    def add_identities(
        self,
        routed_TD: Tensor,
        x_TD: Tensor,
        weights_Tk: Tensor,
        experts_Tk: Tensor,
        *,
        num_experts: int,
    ) -> Tensor:
        """See :func:`headstock.ops.routing.add_identities`."""
        routed_TD = routed_TD if routed_TD.stride(1) == 1 else routed_TD.contiguous()
        x_TD = x_TD if x_TD.stride(1) == 1 else x_TD.contiguous()
        num_tokens, size = x_TD.shape
        k = experts_Tk.shape[1]
        out_TD = torch.empty((num_tokens, size), dtype=x_TD.dtype, device=x_TD.device)
        identities_kernel[(num_tokens, cdiv(size, BLOCK))](
            routed_TD,
            x_TD,
            weights_Tk.contiguous(),
            experts_Tk.contiguous(),
            out_TD,
            routed_TD.stride(0),
            x_TD.stride(0),
            size,
            num_experts,
            K=k,
            BLOCK_K=next_power_of_2(k),
            BLOCK=BLOCK,
            **self._target.launch(4),
        )
        return out_TD
