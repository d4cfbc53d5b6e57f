"""Norms of queries and keys over all heads together, a program a row.

Shapes: T tokens, C columns of a fused projection.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.norm import warps_for, weighted
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

NORM_BLOCK = 1024
"""Columns that a program scales."""


@triton.jit
def sum_squares_kernel(
    qkv, sums, stride, Q: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """Sum the squares of row ``program_id(0)``: of Q columns, then of the K behind them."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    line = qkv + row * stride + columns
    q32 = tl.load(line, mask=columns < Q, other=0.0).to(tl.float32)
    k32 = tl.load(line + Q, mask=columns < K, other=0.0).to(tl.float32)
    tl.store(sums + 2 * row, tl.sum(q32 * q32, axis=0))
    tl.store(sums + 2 * row + 1, tl.sum(k32 * k32, axis=0))


@triton.jit
def norm_queries_and_keys_kernel(
    qkv,
    squares,
    q_norm,
    k_norm,
    out,
    stride,
    C,
    q_width,
    k_width,
    eps,
    Q: tl.constexpr,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Scale BLOCK columns of row ``program_id(0)``; those behind Q + K stay as they are."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_q, is_normed = columns < Q, columns < Q + K
    x = tl.load(qkv + row * stride + columns, mask=columns < C, other=0.0)
    q_inverse = tl.rsqrt(tl.load(squares + 2 * row) / q_width + eps)
    k_inverse = tl.rsqrt(tl.load(squares + 2 * row + 1) / k_width + eps)
    q_weight = tl.load(q_norm + columns, mask=is_q, other=0.0)
    k_weight = tl.load(k_norm + columns - Q, mask=is_normed & (columns >= Q), other=0.0)
    weight = tl.where(is_q, q_weight, k_weight)
    normed = weighted(x.to(tl.float32) * tl.where(is_q, q_inverse, k_inverse), weight, out)
    tl.store(out + row * C + columns, tl.where(is_normed, normed, x), mask=columns < C)


class WideNorms:
    """The norm ops over all heads on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def sum_squares(self, qkv_TC: Tensor, *, q_size: int, k_size: int) -> Tensor:
        """See :func:`headstock.ops.wide_norm.sum_squares`."""
        num_rows, largest = qkv_TC.shape[0], max(q_size, k_size)
        sums_T2 = torch.empty((num_rows, 2), dtype=torch.float32, device=qkv_TC.device)
        if num_rows:
            sum_squares_kernel[(num_rows,)](
                qkv_TC,
                sums_T2,
                qkv_TC.stride(0),
                Q=q_size,
                K=k_size,
                BLOCK=next_power_of_2(largest),
                **self._target.launch(warps_for(largest)),
            )
        return sums_T2

    def norm_queries_and_keys(
        self,
        qkv_TC: Tensor,
        squares_T2: Tensor,
        q_norm_Q: Tensor,
        k_norm_K: Tensor,
        *,
        q_width: int,
        k_width: int,
        eps: float,
    ) -> Tensor:
        """See :func:`headstock.ops.wide_norm.norm_queries_and_keys`."""
        num_rows, size = qkv_TC.shape
        out_TC = torch.empty((num_rows, size), dtype=qkv_TC.dtype, device=qkv_TC.device)
        if num_rows:
            norm_queries_and_keys_kernel[(num_rows, cdiv(size, NORM_BLOCK))](
                qkv_TC,
                squares_T2,
                q_norm_Q,
                k_norm_K,
                out_TC,
                qkv_TC.stride(0),
                size,
                q_width,
                k_width,
                eps,
                Q=q_norm_Q.shape[0],
                K=k_norm_K.shape[0],
                BLOCK=NORM_BLOCK,
                **self._target.launch(4),
            )
        return out_TC
