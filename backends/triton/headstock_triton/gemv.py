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
FEW_ROWS = 2
"""Up to as many rows this beats the vendor's library on matrices of any size."""
SMALL_MATRIX = 1 << 23
"""Weights up to which it does so up to MAX_ROWS."""


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
    PDL: tl.constexpr,
):
    """Compute output features [BLOCK_O * program_id(0), …) of all M rows.

    Products are added up lane by lane in float32, and over lanes once at the end. The first tile
    of the weights is asked for before the kernels ahead have ended: it does not depend on them.
    Everything is kept in three dimensions [M, O, I] from the load on, so that no value has to
    change threads before the sum.
    """
    feature = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)[None, :, None]
    row = tl.arange(0, BLOCK_M)[:, None, None]
    column = tl.arange(0, BLOCK_I)[None, None, :]
    weight_at = weight + feature.to(tl.int64) * NUM_IN + column
    x_at = x + row * x_stride + column
    inside_out = feature < NUM_OUT
    inside_row = row < M
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()  # pyright: ignore[reportAttributeAccessIssue]
    inside = inside_out & (column < NUM_IN)
    tile = tl.load(weight_at, mask=inside, other=0.0, eviction_policy="evict_first")
    if PDL:
        tl.extra.cuda.gdc_wait()  # pyright: ignore[reportAttributeAccessIssue]
    values = tl.load(x_at, mask=inside_row & (column < NUM_IN), other=0.0)
    acc = values.to(tl.float32) * tile.to(tl.float32)
    for at in tl.static_range(BLOCK_I, NUM_IN, BLOCK_I):  # pyright: ignore[reportGeneralTypeIssues]
        if NUM_IN % BLOCK_I == 0:
            here_out = inside_out
            here_row = inside_row
        else:
            here_out = inside_out & (at + column < NUM_IN)
            here_row = inside_row & (at + column < NUM_IN)
        tile = tl.load(weight_at + at, mask=here_out, other=0.0, eviction_policy="evict_first")
        values = tl.load(x_at + at, mask=here_row, other=0.0)
        acc += values.to(tl.float32) * tile.to(tl.float32)
    y_MO = tl.sum(acc, axis=2)
    feature_O = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    row_M = tl.arange(0, BLOCK_M)
    if HAS_BIAS:
        inside_O = feature_O < NUM_OUT
        y_MO += tl.load(bias + feature_O, mask=inside_O, other=0.0).to(tl.float32)[None, :]
    out_MO = out + row_M[:, None] * NUM_OUT + feature_O[None, :]
    mask_MO = (row_M < M)[:, None] & (feature_O < NUM_OUT)[None, :]
    tl.store(out_MO, y_MO.to(out.dtype.element_ty), mask=mask_MO)


def is_faster(num_rows: int, out_features: int, in_features: int) -> bool:
    """Whether this reads the weights faster than the vendor's library, as measured."""
    limit = MAX_ROWS if out_features * in_features <= SMALL_MATRIX else FEW_ROWS
    return 0 < num_rows <= limit


@dataclass(frozen=True, slots=True)
class GemvTuning:
    """Block shape of a GEMV: output features, input features, warps."""

    block_o: int
    block_i: int
    warps: int


def choose_tuning(num_rows: int, out_features: int, in_features: int) -> GemvTuning:
    """Return a block shape: a program reads some 16 KB at once and there are programs enough.

    Threads lie along the input features alone, eight a thread: then activations and weights are
    where they are needed as they are loaded.
    """
    warps = max(1, min(4, next_power_of_2(in_features) // 256))
    block_o = 8 if out_features >= 4096 else 4
    return GemvTuning(max(1, block_o // next_power_of_2(num_rows)), 256 * warps, warps)


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
        **target.launch(tuning.warps),
    )
    return out_MO
