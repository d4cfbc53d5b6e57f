"""Draws by inverse transform, in id order.

A row without filters is read once, and then the one part that its number falls into.

Shapes: S rows, V ids, P parts of a row.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own, and functions of pairs as ones that never return.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.sampling.filters import (
    COUNT_LIMIT,
    DONE,
    EDGES,
    FACTS,
    FILTERED,
    FLOOR,
    MASS_LIMIT,
    NARROWINGS,
    PEAK,
    PLAIN,
    SCALE,
    STAYS_FROM,
    TIES_KEPT,
    edges_between,
    filter_rows,
)
from headstock_triton.sampling.weights import (
    GREEDY_BELOW,
    INFINITY,
    PART,
    WARPS,
    Parts,
    load_logits,
    merge_sums,
    scale_of,
    weigh,
    weigh_parts,
)
from headstock_triton.target import Target

SLACK = tl.constexpr(0.99)
"""By what the analytic bounds of a search are lowered, so that rounding cannot pass them."""
LOWEST = tl.constexpr(-3.4028234663852886e38)
TINY = tl.constexpr(1e-37)


@triton.jit
def begin_rows_kernel(
    peaks,
    peak_ids,
    lows,
    sums,
    temperature,
    top_k,
    top_p,
    min_p,
    kinds,
    facts,
    edges,
    out,
    V,
    PARTS,
    STEPS: tl.constexpr,
    EDGES: tl.constexpr,
    WIDTH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the parts of row ``program_id(0)``, and say what is left to do for it."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    scale = scale_of(temperature, row)
    peak, place, sum_P = merge_sums(peaks, sums, row, PARTS, scale, WIDTH)
    total = tl.sum(sum_P, axis=0)
    is_greedy = tl.load(temperature + row) < GREEDY_BELOW
    # A row without a finite peak is faulty, and its peak is the logit that shows it.
    is_done = is_greedy | (tl.abs(peak) == INFINITY)
    tl.store(out + row, tl.load(peak_ids + row * PARTS + place).to(tl.int64))
    k, p, floor = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
    count_limit = tl.where(k < 1, V, tl.minimum(k, V))
    is_filtered = (count_limit < V) | (p < 1.0) | (floor > 0.0)
    tl.store(kinds + row, tl.where(is_done, DONE, tl.where(is_filtered, FILTERED, PLAIN)))
    facts += row * FACTS
    tl.store(facts + PEAK, peak)
    tl.store(facts + SCALE, scale)
    tl.store(facts + COUNT_LIMIT, count_limit.to(tl.float32))
    tl.store(facts + MASS_LIMIT, tl.where(p < 1.0, p * total, INFINITY))
    tl.store(facts + FLOOR, floor)
    tl.store(facts + STAYS_FROM, -INFINITY)
    tl.store(facts + TIES_KEPT, 0.0)
    parts = tl.arange(0, WIDTH)
    low_P = tl.load(lows + row * PARTS + parts, mask=parts < PARTS, other=INFINITY)
    # Everything under weight (1 - p) * total / V has at most 1 - p of the mass together.
    lightest = tl.maximum((1.0 - p) * total / V, floor) * SLACK
    bound = tl.where(lightest > 0.0, peak + tl.log2(tl.maximum(lightest, TINY)) / scale, LOWEST)
    lowest = tl.min(low_P, axis=0)
    below = tl.maximum(lowest - (tl.abs(lowest) * 1e-6 + 1e-30), LOWEST)
    edge_E = edges_between(tl.maximum(bound, below), peak, EDGES)
    tl.store(edges + row * STEPS * EDGES + tl.arange(0, EDGES), edge_E)


@triton.jit
def uniform(seeds, indexes, row):
    """Return the number in [0, 1) of row ``row``: bit for bit the reference's."""
    index = tl.load(indexes + row)
    low, high = (index & 0xFFFFFFFF).to(tl.uint32), (index >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox(tl.load(seeds + row), low, high, low * 0, low * 0)
    return (word >> 8).to(tl.float32) * (2.0**-24)


@triton.jit
def pick_kernel(
    logits,
    peaks,
    sums,
    ties,
    kinds,
    facts,
    seeds,
    indexes,
    out,
    stride,
    V,
    PARTS,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Find the part that the number of row ``program_id(0)`` falls into, then the id.

    Scans in float32 need not rise with every id: only an id that has weight is ever taken.
    """
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    kind = tl.load(kinds + row)
    if kind == DONE:
        return
    facts += row * FACTS
    peak, scale = tl.load(facts + PEAK), tl.load(facts + SCALE)
    stays_from, ties_kept = tl.load(facts + STAYS_FROM), tl.load(facts + TIES_KEPT).to(tl.int32)
    parts = tl.arange(0, WIDTH)
    inside = parts < PARTS
    if kind == FILTERED:
        tie_P = tl.load(ties + row * PARTS + parts, mask=inside, other=0)
        earlier_P = tl.cumsum(tie_P, axis=0) - tie_P
        kept_P = tl.minimum(tl.maximum(ties_kept - earlier_P, 0), tie_P)
        mass_P = tl.load(sums + row * PARTS + parts, mask=inside, other=0.0)
        mass_P += kept_P.to(tl.float32) * weigh(stays_from, peak, scale)
    else:
        _, _, mass_P = merge_sums(peaks, sums, row, PARTS, scale, WIDTH)
        earlier_P = tl.zeros([WIDTH], tl.int32)
    wanted = uniform(seeds, indexes, row) * tl.sum(mass_P, axis=0)
    sum_P = tl.cumsum(mass_P, axis=0)
    part = first_over(sum_P, mass_P, parts, wanted, WIDTH)
    before = tl.sum(tl.where(parts < part, mass_P, 0.0), axis=0)
    earlier = tl.sum(tl.where(parts == part, earlier_P, 0), axis=0)
    x, ids = load_logits(logits, row, part, stride, V, BLOCK)
    is_tie = x == stays_from
    rank = earlier + tl.cumsum(is_tie.to(tl.int32), axis=0)
    stays = (x > stays_from) | (is_tie & (rank <= ties_kept))
    weights = tl.where(stays, weigh(x, peak, scale), 0.0)
    drawn = first_over(before + tl.cumsum(weights, axis=0), weights, ids, wanted, V)
    tl.store(out + row, drawn.to(tl.int64))


@triton.jit
def first_over(sums, weights, places, wanted, END):
    """Return the first place with weight whose sum is over ``wanted``, or else the last one."""
    has_weight = weights > 0.0
    first = tl.min(tl.where(has_weight & (sums > wanted), places, END), axis=0)
    last = tl.max(tl.where(has_weight, places, 0), axis=0)
    return tl.where(first < END, first, last)


class Draws:
    """Draws on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def draw_tokens(
        self,
        logits_SV: Tensor,
        temperature_S: Tensor,
        top_k_S: Tensor,
        top_p_S: Tensor,
        min_p_S: Tensor,
        seeds_S: Tensor,
        indexes_S: Tensor,
    ) -> Tensor:
        """See :func:`headstock.ops.sampling.draw_tokens`."""
        num_rows, size = logits_SV.shape
        where = logits_SV.device
        out_S = torch.empty(num_rows, dtype=torch.int64, device=where)
        if not num_rows:
            return out_S
        parts = weigh_parts(logits_SV, temperature_S, self._target)
        num_parts = parts.peaks_SP.shape[1]
        kinds_S = torch.empty(num_rows, dtype=torch.int32, device=where)
        facts_SF = torch.empty((num_rows, FACTS.value), dtype=torch.float32, device=where)
        edges_SNE = torch.empty((num_rows, NARROWINGS, EDGES), dtype=torch.float32, device=where)
        ties_SP = torch.empty((num_rows, num_parts), dtype=torch.int32, device=where)
        begin_rows_kernel[(num_rows,)](
            parts.peaks_SP,
            parts.peak_ids_SP,
            parts.lows_SP,
            parts.sums_SP,
            temperature_S,
            top_k_S,
            top_p_S,
            min_p_S,
            kinds_S,
            facts_SF,
            edges_SNE,
            out_S,
            size,
            num_parts,
            STEPS=NARROWINGS,
            EDGES=EDGES,
            WIDTH=parts.width,
            **self._target.launch(1),
        )
        filter_rows(logits_SV, kinds_S, facts_SF, edges_SNE, parts, ties_SP, self._target)
        self._pick(logits_SV, parts, ties_SP, kinds_S, facts_SF, seeds_S, indexes_S, out_S)
        return out_S

    def _pick(
        self,
        logits_SV: Tensor,
        parts: Parts,
        ties_SP: Tensor,
        kinds_S: Tensor,
        facts_SF: Tensor,
        seeds_S: Tensor,
        indexes_S: Tensor,
        out_S: Tensor,
    ) -> None:
        """Write the ids of the rows that have none yet into ``out_S``."""
        num_rows, size = logits_SV.shape
        pick_kernel[(num_rows,)](
            logits_SV,
            parts.peaks_SP,
            parts.sums_SP,
            ties_SP,
            kinds_S,
            facts_SF,
            seeds_S,
            indexes_S,
            out_S,
            logits_SV.stride(0),
            size,
            ties_SP.shape[1],
            WIDTH=parts.width,
            BLOCK=PART,
            **self._target.launch(WARPS),
        )
