"""Log-probabilities of chosen, likeliest and asked ids.

The likeliest are found in two rounds: of each part, then among the parts' own. Of equals the
lowest id comes first. Requests choose K, so kernels are not compiled anew for each.

Shapes: S rows, V ids, P parts of a row, K likeliest, B asked ids.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own, and functions of pairs as ones that never return.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops import sampling
from headstock_triton.overlap import begin
from headstock_triton.sampling.filters import float_of, order_of
from headstock_triton.sampling.weights import (
    INFINITY,
    LOG2E,
    PART,
    WARPS,
    Parts,
    load_logits,
    merge_sums,
    weigh_parts,
)
from headstock_triton.target import Target, next_power_of_2

MAX_LIKELIEST = 32
"""Taken out one by one; more are left to the reference, which sorts, and is sooner done then."""

ASKED = 64
"""Asked ids that a program looks up together."""

NOTHING = tl.constexpr(-(2**31))
"""Under the order of every float: places past the end, and those that were taken."""


@triton.jit
def take_best(orders, places):
    """Return the highest order, its first place, and the orders without it."""
    best, place = tl.max(orders, axis=0, return_indices=True)
    return best, place, tl.where(places == place, NOTHING, orders)


@triton.jit(do_not_specialize=["K"])
def top_parts_kernel(
    logits,
    top,
    top_ids,
    stride,
    V,
    PARTS,
    K,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write the orders of the K highest logits of a part, best first, and their ids."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    x, ids = load_logits(logits, row, part, stride, V, BLOCK)
    orders = tl.where(ids < V, order_of(tl.where(x == 0.0, 0.0, x)), NOTHING)
    places = tl.arange(0, BLOCK)
    base = (row * PARTS + part) * K
    for rank in range(K):
        best, place, orders = take_best(orders, places)
        tl.store(top + base + rank, best)
        tl.store(top_ids + base + rank, part * BLOCK + place)


@triton.jit(do_not_specialize=["K"])
def merge_tops_kernel(
    part_top,
    part_top_ids,
    peaks,
    sums,
    top,
    top_ids,
    PARTS,
    K,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Choose the K likeliest of row ``program_id(0)`` among those of its parts."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    log_total = log_total_of(peaks, sums, row, PARTS, WIDTH)
    places = tl.arange(0, BLOCK)
    base = row * PARTS * K
    orders = tl.load(part_top + base + places, mask=places < PARTS * K, other=NOTHING)
    for rank in range(K):
        best, place, orders = take_best(orders, places)
        tl.store(top + row * K + rank, float_of(best) - log_total)
        tl.store(top_ids + row * K + rank, tl.load(part_top_ids + base + place).to(tl.int64))


@triton.jit
def log_total_of(peaks, sums, row, PARTS, WIDTH: tl.constexpr):
    """Return the natural log of a row's sum of exponentials."""
    peak, _, sum_P = merge_sums(peaks, sums, row, PARTS, LOG2E, WIDTH)
    return peak + tl.log(tl.sum(sum_P, axis=0))


@triton.jit(do_not_specialize=["ids_stride", "asked_stride", "B"])
def look_up_kernel(
    logits,
    ids,
    asked,
    peaks,
    sums,
    chosen,
    of_asked,
    stride,
    ids_stride,
    asked_stride,
    B,
    PARTS,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Look up the chosen id of row ``program_id(0)``, and its asked ones."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    log_total = log_total_of(peaks, sums, row, PARTS, WIDTH)
    tl.store(chosen + row, tl.load(logits + tl.load(ids + row * ids_stride)) - log_total)
    for begins in range(0, B, BLOCK):
        at = begins + tl.arange(0, BLOCK)
        own = tl.load(asked + row * asked_stride + at, mask=at < B, other=0)
        x = tl.load(logits + own, mask=at < B, other=-INFINITY)
        tl.store(of_asked + row * B + at, x - log_total, mask=at < B)


class Logprobs:
    """Log-probabilities on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def token_logprobs(
        self, logits_SV: Tensor, ids_S: Tensor, asked_SB: Tensor, *, k: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See :func:`headstock.ops.sampling.token_logprobs`."""
        num_rows, width = asked_SB.shape
        if k > MAX_LIKELIEST or not num_rows:
            return sampling.token_logprobs(logits_SV, ids_S, asked_SB, k=k)
        where = logits_SV.device
        chosen_S = torch.empty(num_rows, dtype=torch.float32, device=where)
        of_asked_SB = torch.empty((num_rows, width), dtype=torch.float32, device=where)
        parts = weigh_parts(logits_SV, None, self._target)
        look_up_kernel[(num_rows,)](
            logits_SV,
            ids_S,
            asked_SB,
            parts.peaks_SP,
            parts.sums_SP,
            chosen_S,
            of_asked_SB,
            logits_SV.stride(0),
            ids_S.stride(0),
            asked_SB.stride(0),
            width,
            parts.peaks_SP.shape[1],
            WIDTH=parts.width,
            BLOCK=ASKED,
            **self._target.launch(1),
        )
        top_SK, top_ids_SK = self._likeliest(logits_SV, parts, k)
        return chosen_S, top_SK, top_ids_SK, of_asked_SB

    def _likeliest(self, logits_SV: Tensor, parts: Parts, k: int) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of the ``k`` likeliest ids, and the ids. [S, K]"""
        num_rows, size = logits_SV.shape
        where, num_parts = logits_SV.device, parts.peaks_SP.shape[1]
        top_SK = torch.empty((num_rows, k), dtype=torch.float32, device=where)
        top_ids_SK = torch.empty((num_rows, k), dtype=torch.int64, device=where)
        if not k:
            return top_SK, top_ids_SK
        shape = (num_rows, num_parts, k)
        part_top = torch.empty(shape, dtype=torch.int32, device=where)
        part_top_ids = torch.empty(shape, dtype=torch.int32, device=where)
        top_parts_kernel[(num_rows, num_parts)](
            logits_SV,
            part_top,
            part_top_ids,
            logits_SV.stride(0),
            size,
            num_parts,
            k,
            BLOCK=PART,
            **self._target.launch(WARPS),
        )
        merge_tops_kernel[(num_rows,)](
            part_top,
            part_top_ids,
            parts.peaks_SP,
            parts.sums_SP,
            top_SK,
            top_ids_SK,
            num_parts,
            k,
            WIDTH=parts.width,
            BLOCK=next_power_of_2(num_parts * MAX_LIKELIEST),
            **self._target.launch(WARPS),
        )
        return top_SK, top_ids_SK
