"""Embedding look-up, for a slice of the vocabulary."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.target import Target, next_power_of_2


@triton.jit
def rows_kernel(
    weight,
    ids,
    out,
    first,
    num_rows,
    factor,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    IS_SCALED: tl.constexpr,
    PDL: tl.constexpr,
):
    """Copy row ids[program_id(0)] - first of weight [num_rows, D]; zeros if there is none."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    row = tl.load(ids + token).to(tl.int64) - first
    is_here = (row >= 0) & (row < num_rows)
    value = tl.load(weight + row * D + columns, mask=(columns < D) & is_here, other=0.0)
    if IS_SCALED:
        value = (value.to(tl.float32) * factor).to(out.dtype.element_ty)
    tl.store(out + token * D + columns, value, mask=columns < D)


def embedding_rows(
    weight_OI: Tensor, ids_T: Tensor, first: int, target: Target, factor: float = 1.0
) -> Tensor:
    """Return ``factor`` times the rows of ``ids_T``; ids not in [first, first + O) give zeros."""
    num_tokens, size = ids_T.shape[0], weight_OI.shape[1]
    out_TI = torch.empty((num_tokens, size), dtype=weight_OI.dtype, device=weight_OI.device)
    if num_tokens:
        rows_kernel[(num_tokens,)](
            weight_OI,
            ids_T,
            out_TI,
            first,
            weight_OI.shape[0],
            factor,
            D=size,
            BLOCK=next_power_of_2(size),
            IS_SCALED=factor != 1,
            **target.launch(4),
        )
    return out_TI
