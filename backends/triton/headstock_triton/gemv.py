"""Products of few rows with a matrix, at the speed at which its weights can be read.

Shapes: M rows of activations, O output features, I input features.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.target import Target, cdiv, next_power_of_2

MAX_ROWS = 4


@triton.jit
def gemv_kernel(
    x,
    weight,
    bias,
    out,
    NUM_OUT,
    x_stride,
    M: tl.constexpr,
    NUM_IN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute output features [BLOCK_O * program_id(0), …) of all M rows.

    Products are added up lane by lane in float32, and over lanes once at the end. The first tile
    of the weights is asked for before the kernels ahead have ended: it does not depend on them.
    """
    feature_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    inside_O = feature_O < NUM_OUT
    row_M = tl.arange(0, BLOCK_M)
    column_I = tl.arange(0, BLOCK_I)
    weight_OI = weight + feature_O.to(tl.int64)[:, None] * NUM_IN + column_I[None, :]
    x_MI = x + row_M[:, None] * x_stride + column_I[None, :]
    is_even: tl.constexpr = NUM_IN % BLOCK_I == 0
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()  # pyright: ignore[reportAttributeAccessIssue]
    mask_OI = inside_O[:, None] & (column_I < NUM_IN)[None, :]
    first_OI = tl.load(weight_OI, mask=mask_OI, other=0.0, eviction_policy="evict_first")
    if PDL:
        tl.extra.cuda.gdc_wait()  # pyright: ignore[reportAttributeAccessIssue]
    mask_MI = (row_M < M)[:, None] & (column_I < NUM_IN)[None, :]
    values_MI = tl.load(x_MI, mask=mask_MI, other=0.0).to(tl.float32)
    acc_MOI = values_MI[:, None, :] * first_OI.to(tl.float32)[None, :, :]
    for at in tl.range(BLOCK_I, NUM_IN, BLOCK_I, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        if is_even:
            here_OI = inside_O[:, None]
            here_MI = (row_M < M)[:, None]
        else:
            here_OI = inside_O[:, None] & (at + column_I < NUM_IN)[None, :]
            here_MI = (row_M < M)[:, None] & (at + column_I < NUM_IN)[None, :]
        tile_OI = tl.load(weight_OI + at, mask=here_OI, other=0.0, eviction_policy="evict_first")
        values_MI = tl.load(x_MI + at, mask=here_MI, other=0.0).to(tl.float32)
        acc_MOI += values_MI[:, None, :] * tile_OI.to(tl.float32)[None, :, :]
    y_MO = tl.sum(acc_MOI, axis=2)
    if HAS_BIAS:
        y_MO += tl.load(bias + feature_O, mask=inside_O, other=0.0).to(tl.float32)[None, :]
    out_MO = out + row_M[:, None] * NUM_OUT + feature_O[None, :]
    mask_MO = (row_M < M)[:, None] & inside_O[None, :]
    tl.store(out_MO, y_MO.to(out.dtype.element_ty), mask=mask_MO)


@dataclass(frozen=True, slots=True)
class GemvTuning:
    """Block shape of a GEMV: output features, input features, warps, stages."""

    block_o: int
    block_i: int
    warps: int
    stages: int


def choose_tuning(num_rows: int, out_features: int, in_features: int) -> GemvTuning:
    """Return a block shape: a program reads some 16 KB at once and there are programs enough."""
    block_i = min(1024, next_power_of_2(in_features))
    block_o = 8 if out_features >= 4096 else 4
    block_o = max(1, block_o // next_power_of_2(num_rows))
    return GemvTuning(block_o, block_i, 4, 2)


def gemv(
    x_MI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor | None,
    target: Target,
    tuning: GemvTuning | None = None,
) -> Tensor:
    """Return x·Wᵀ + bias for at most MAX_ROWS rows, accumulated in float32. [M, O]"""
    num_rows, in_features = x_MI.shape
    out_features = weight_OI.shape[0]
    tuning = tuning or choose_tuning(num_rows, out_features, in_features)
    out_MO = torch.empty((num_rows, out_features), dtype=x_MI.dtype, device=x_MI.device)
    gemv_kernel[(cdiv(out_features, tuning.block_o),)](
        x_MI,
        weight_OI,
        bias_O if bias_O is not None else weight_OI,
        out_MO,
        out_features,
        x_MI.stride(0),
        M=num_rows,
        NUM_IN=in_features,
        BLOCK_M=next_power_of_2(num_rows),
        BLOCK_O=tuning.block_o,
        BLOCK_I=tuning.block_i,
        HAS_BIAS=bias_O is not None,
        STAGES=tuning.stages,
        **target.launch(tuning.warps),
    )
    return out_MO
