"""Unnormalised probabilities: the peak, and the sum of exponentials, of each part of a row.

Shapes: S rows, V ids, P parts of a row.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own, and functions of pairs as ones that never return.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops import sampling
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

PART = 4096
"""Ids of a part. Fixed: the order of sums follows from it."""

WARPS = 8
"""Of a program that has a part."""

LOG2E = tl.constexpr(1.4426950408889634)
INFINITY = tl.constexpr(float("inf"))
GREEDY_BELOW = tl.constexpr(sampling.GREEDY_BELOW)


@triton.jit
def load_logits(logits, row, part, stride, V, BLOCK: tl.constexpr):
    """Load a part of a row, and its ids. What is no number counts as inf; past the end as -inf."""
    ids = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + ids, mask=ids < V, other=-INFINITY).to(tl.float32)
    return tl.where(x != x, INFINITY, x), ids


@triton.jit
def weigh(x, peak, scale):
    """Return exp2(scale * (x - peak)); 0 for -inf, whatever the peak."""
    return tl.where(x == -INFINITY, 0.0, tl.exp2((x - peak) * scale))


@triton.jit
def scale_of(temperature, row):
    """Return what logits are multiplied by under exp2; greedy rows have temperature 1."""
    heat = tl.load(temperature + row)
    return LOG2E / tl.where(heat < GREEDY_BELOW, 1.0, heat)


@triton.jit
def weigh_parts_kernel(
    logits,
    temperature,
    peaks,
    peak_ids,
    lows,
    sums,
    stride,
    V,
    PARTS,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Find a part's highest logit, its lowest id, the lowest finite logit, and the sum of weights.

    Weights are relative to the part's own peak. ``temperature`` is None for 1.
    """
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    x, _ = load_logits(logits, row, part, stride, V, BLOCK)
    peak, place = tl.max(x, axis=0, return_indices=True)
    scale = LOG2E + 0.0
    if temperature is not None:
        scale = scale_of(temperature, row)
    at = row * PARTS + part
    tl.store(peaks + at, peak)
    tl.store(peak_ids + at, part * BLOCK + place)
    tl.store(lows + at, tl.min(tl.where(x == -INFINITY, INFINITY, x), axis=0))
    tl.store(sums + at, tl.sum(weigh(x, peak, scale), axis=0))


@triton.jit
def merge_sums(peaks, sums, row, PARTS, scale, WIDTH: tl.constexpr):
    """Return a row's peak, the part it is in, and each part's sum relative to that peak. [WIDTH]"""
    parts = tl.arange(0, WIDTH)
    inside = parts < PARTS
    peak_P = tl.load(peaks + row * PARTS + parts, mask=inside, other=-INFINITY)
    peak, place = tl.max(peak_P, axis=0, return_indices=True)
    sum_P = tl.load(sums + row * PARTS + parts, mask=inside, other=0.0)
    return peak, place, sum_P * weigh(peak_P, peak, scale)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What is known of each part of each row.

    Attributes:
        peaks_SP: The highest logit. float32.
        peak_ids_SP: Its id, of equals the lowest. int32.
        lows_SP: The lowest finite logit; inf where there is none. float32.
        sums_SP: The sum of weights relative to the part's peak. float32.
        width: P, rounded up to a power of two.
    """

    peaks_SP: Tensor
    peak_ids_SP: Tensor
    lows_SP: Tensor
    sums_SP: Tensor
    width: int


def weigh_parts(logits_SV: Tensor, temperature_S: Tensor | None, target: Target) -> Parts:
    """Look at each part of each row of ``logits_SV`` once. None: temperature 1."""
    num_rows, size = logits_SV.shape
    num_parts = cdiv(size, PART)
    shape, where = (num_rows, num_parts), logits_SV.device
    # A tensor each, not views of one: kernels are compiled once more for unaligned addresses.
    parts = Parts(
        peaks_SP=torch.empty(shape, dtype=torch.float32, device=where),
        peak_ids_SP=torch.empty(shape, dtype=torch.int32, device=where),
        lows_SP=torch.empty(shape, dtype=torch.float32, device=where),
        sums_SP=torch.empty(shape, dtype=torch.float32, device=where),
        width=next_power_of_2(num_parts),
    )
    weigh_parts_kernel[shape](
        logits_SV,
        temperature_S,
        parts.peaks_SP,
        parts.peak_ids_SP,
        parts.lows_SP,
        parts.sums_SP,
        logits_SV.stride(0),
        size,
        num_parts,
        BLOCK=PART,
        **target.launch(WARPS),
    )
    return parts
