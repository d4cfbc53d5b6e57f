"""The filters of a draw: what weight an id needs to stay, found without sorting the row.

Top-k, top-p and min-p are one search. A threshold t is *enough* when fewer than k ids lie over it,
the ids over it have less than p of the mass, and its own weight is at least min_p times the
likeliest's. What is enough stays enough as t grows, and the ids that stay are those from the
lowest enough logit on. Of equals at that logit all stay but for top-p, which keeps the first in id
order until their sum reaches p.

The search runs from (low, high] with high enough and low not. ``NARROWINGS`` times all parts count
and sum over ``EDGES`` thresholds between the two, equally far apart, and each next program picks
the interval; then the ids still open are few. They are gathered, in id order, and one program a
row searches them to the last bit. A row with more than ``OPEN_IDS`` of them searches all of itself:
slower, and as right.

Counts are exact. Masses are float32 sums: over a part in a fixed tree, then over parts, then
the open ones. The reference sums probabilities from the likeliest down. So where a sum meets p
within rounding, one id at the border may stay here and go there, or the other way round.

Shapes: S rows, V ids, P parts of a row, E thresholds.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock_triton.overlap import begin
from headstock_triton.sampling.weights import INFINITY, PART, WARPS, Parts, load_logits, weigh
from headstock_triton.target import Target

EDGES = 8
NARROWINGS = 2
OPEN_IDS = 16_384

SEARCHED = 2048
"""Open ids that a program looks at together."""

DONE, PLAIN, FILTERED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What a row needs: its id is known; it draws from all ids; it draws from those that stay."""

FACTS = tl.constexpr(8)
"""Floats a row's facts have; these are their places."""
PEAK, SCALE, TOTAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
COUNT_LIMIT, MASS_LIMIT, FLOOR = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
STAYS_FROM, TIES_KEPT = tl.constexpr(6), tl.constexpr(7)

OPEN = tl.constexpr(5)
"""Floats that describe a row's open ids; these are their places."""
LOW, HIGH, COUNT_OVER, MASS_OVER, COUNT_OPEN = (tl.constexpr(i) for i in range(5))


@triton.jit
def order_of(x):
    """Return an int32 that is ordered as the float is."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def float_of(order):
    """Return the float that :func:`order_of` took to ``order``."""
    bits = order.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def edges_between(low, high, EDGES: tl.constexpr):
    """Return thresholds from ``low`` to ``high``, both among them. [EDGES]"""
    share = tl.arange(0, EDGES).to(tl.float32) / (EDGES - 1)
    edges = low * (1.0 - share) + high * share
    return tl.minimum(tl.maximum(edges, low), high)


@triton.jit
def is_enough(edges, counts, masses, facts):
    """Tell of each threshold whether it is enough, by what lies over it."""
    weights = weigh(edges, tl.load(facts + PEAK), tl.load(facts + SCALE))
    few = counts.to(tl.float32) < tl.load(facts + COUNT_LIMIT)
    light = masses < tl.load(facts + MASS_LIMIT)
    return few & light & (weights >= tl.load(facts + FLOOR))


@triton.jit
def at_place(values, places, place):
    """Return ``values[place]``."""
    return tl.sum(tl.where(places == place, values, 0), axis=0)


@triton.jit
def choose_interval(edges, counts, masses, facts, EDGES: tl.constexpr):
    """Return the place of the lowest edge that is enough; never the first, at worst the last."""
    places = tl.arange(0, EDGES)
    enough = is_enough(edges, counts, masses, facts) & (places > 0)
    return tl.min(tl.where(enough, places, EDGES - 1), axis=0)


@triton.jit
def narrow_kernel(
    logits,
    kinds,
    facts,
    brackets,
    counts,
    masses,
    stride,
    V,
    PARTS,
    STEP: tl.constexpr,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    EDGES: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Count and sum what of a part lies over each of EDGES thresholds.

    ``brackets`` [S, STEPS, 2] has (low, high] of each step; the first is given, each next one is
    found from ``counts`` and ``masses`` [S, STEPS, P, EDGES] of the step before.
    """
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if tl.load(kinds + row) != FILTERED:
        return
    facts += row * FACTS
    bracket = brackets + (row * STEPS + STEP) * 2
    table = (row * STEPS + STEP) * PARTS * EDGES
    if STEP == 0:
        low, high = tl.load(bracket), tl.load(bracket + 1)
    else:
        before = table - PARTS * EDGES
        edges, count_PE, mass_PE = load_step(
            bracket - 2, counts + before, masses + before, PARTS, WIDTH, EDGES
        )
        count_E, mass_E = tl.sum(count_PE, axis=0), tl.sum(mass_PE, axis=0)
        places = tl.arange(0, EDGES)
        place = choose_interval(edges, count_E, mass_E, facts, EDGES)
        low, high = at_place(edges, places, place - 1), at_place(edges, places, place)
        if part == 0:
            tl.store(bracket, low)
            tl.store(bracket + 1, high)
    x, _ = load_logits(logits, row, part, stride, V, BLOCK)
    weights = weigh(x, tl.load(facts + PEAK), tl.load(facts + SCALE))
    over = x[:, None] > edges_between(low, high, EDGES)[None, :]
    at = table + part * EDGES + tl.arange(0, EDGES)
    tl.store(counts + at, tl.sum(over.to(tl.int32), axis=0))
    tl.store(masses + at, tl.sum(tl.where(over, weights[:, None], 0.0), axis=0))


@triton.jit
def load_step(bracket, counts, masses, PARTS, WIDTH: tl.constexpr, EDGES: tl.constexpr):
    """Load what a step found: its thresholds, and what of each part lies over them. [WIDTH, EDGES]"""
    edges = edges_between(tl.load(bracket), tl.load(bracket + 1), EDGES)
    parts = tl.arange(0, WIDTH)
    at = parts[:, None] * EDGES + tl.arange(0, EDGES)[None, :]
    inside = (parts < PARTS)[:, None]
    count_PE = tl.load(counts + at, mask=inside, other=0)
    return edges, count_PE, tl.load(masses + at, mask=inside, other=0.0)


@triton.jit
def gather_kernel(
    logits,
    kinds,
    facts,
    brackets,
    counts,
    masses,
    found,
    open_logits,
    stride,
    V,
    PARTS,
    STEPS: tl.constexpr,
    WIDTH: tl.constexpr,
    EDGES: tl.constexpr,
    OPEN_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write a part's open logits behind those of the parts before it, if the row's have room."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if tl.load(kinds + row) != FILTERED:
        return
    step = row * STEPS + STEPS - 1
    table = step * PARTS * EDGES
    edges, count_PE, mass_PE = load_step(
        brackets + step * 2, counts + table, masses + table, PARTS, WIDTH, EDGES
    )
    count_E, mass_E = tl.sum(count_PE, axis=0), tl.sum(mass_PE, axis=0)
    places = tl.arange(0, EDGES)
    place = choose_interval(edges, count_E, mass_E, facts + row * FACTS, EDGES)
    low, high = at_place(edges, places, place - 1), at_place(edges, places, place)
    sign_E = (places == place - 1).to(tl.int32) - (places == place).to(tl.int32)
    open_P = tl.sum(count_PE * sign_E[None, :], axis=1)
    num_open = tl.sum(open_P, axis=0)
    if part == 0:
        found += row * OPEN
        tl.store(found + LOW, low)
        tl.store(found + HIGH, high)
        tl.store(found + COUNT_OVER, at_place(count_E, places, place).to(tl.float32))
        tl.store(found + MASS_OVER, at_place(mass_E, places, place))
        tl.store(found + COUNT_OPEN, num_open.to(tl.float32))
    if num_open <= OPEN_IDS:
        x, _ = load_logits(logits, row, part, stride, V, BLOCK)
        is_open = (x > low) & (x <= high)
        first = tl.sum(tl.where(tl.arange(0, WIDTH) < part, open_P, 0), axis=0)
        at = first + tl.cumsum(is_open.to(tl.int32), axis=0) - 1
        tl.store(open_logits + row * OPEN_IDS + at, x, mask=is_open)


@triton.jit
def search_kernel(
    logits,
    kinds,
    facts,
    found,
    open_logits,
    stride,
    V,
    EDGES: tl.constexpr,
    OPEN_IDS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Find the lowest logit that stays in row ``program_id(0)``, and how many of its equals."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    if tl.load(kinds + row) != FILTERED:
        return
    facts += row * FACTS
    found += row * OPEN
    peak, scale = tl.load(facts + PEAK), tl.load(facts + SCALE)
    first, last = tl.load(found + LOW), tl.load(found + HIGH)
    count_over = tl.load(found + COUNT_OVER).to(tl.int32)
    mass_over = tl.load(found + MASS_OVER)
    size = tl.load(found + COUNT_OPEN).to(tl.int32)
    source = open_logits + row * OPEN_IDS
    if size > OPEN_IDS:
        source = logits + row * stride
        size = V
    low, high = order_of(first).to(tl.int64), order_of(last).to(tl.int64)
    mass = mass_over
    # Each turn leaves at most an eighth of the floats between the two, rounded up: it ends.
    while high - low > 1:
        stride_E = (high - low + EDGES - 1) // EDGES
        places = tl.arange(0, EDGES)
        order_E = tl.minimum(low + stride_E * (places + 1), high)
        edges = float_of(order_E)
        count_E = tl.zeros([EDGES], tl.int32) + count_over
        mass_E = tl.zeros([EDGES], tl.float32) + mass_over
        for begins in range(0, size, BLOCK):
            at = begins + tl.arange(0, BLOCK)
            x = tl.load(source + at, mask=at < size, other=-INFINITY)
            over = ((x > first) & (x <= last))[:, None] & (x[:, None] > edges[None, :])
            count_E += tl.sum(over.to(tl.int32), axis=0)
            mass_E += tl.sum(tl.where(over, weigh(x, peak, scale)[:, None], 0.0), axis=0)
        enough = is_enough(edges, count_E, mass_E, facts) | (order_E == high)
        place = tl.min(tl.where(enough, places, EDGES - 1), axis=0)
        reached = at_place(order_E, places, place)
        mass = tl.where(reached < high, at_place(mass_E, places, place), mass)
        low = tl.where(place > 0, at_place(order_E, places, place - 1), low)
        high = reached
    stays_from = float_of(high)
    room = (tl.load(facts + MASS_LIMIT) - mass) / weigh(stays_from, peak, scale)
    tl.store(facts + STAYS_FROM, stays_from)
    tl.store(facts + TIES_KEPT, tl.minimum(tl.maximum(tl.ceil(room), 1.0), V.to(tl.float32)))


@triton.jit
def keep_kernel(
    logits,
    kinds,
    facts,
    sums,
    ties,
    stride,
    V,
    PARTS,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Sum a part's weights over the lowest logit that stays, and count its equals."""
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if tl.load(kinds + row) != FILTERED:
        return
    facts += row * FACTS
    stays_from = tl.load(facts + STAYS_FROM)
    x, _ = load_logits(logits, row, part, stride, V, BLOCK)
    weights = weigh(x, tl.load(facts + PEAK), tl.load(facts + SCALE))
    at = row * PARTS + part
    tl.store(sums + at, tl.sum(tl.where(x > stays_from, weights, 0.0), axis=0))
    tl.store(ties + at, tl.sum((x == stays_from).to(tl.int32), axis=0))


def filter_rows(
    logits_SV: Tensor,
    kinds_S: Tensor,
    facts_SF: Tensor,
    brackets_SN2: Tensor,
    parts: Parts,
    ties_SP: Tensor,
    target: Target,
) -> None:
    """Find what stays of the rows that filter.

    Args:
        logits_SV: float32. [S, V]
        kinds_S: ``FILTERED`` where there is something to do. int32. [S]
        facts_SF: Places up to ``FLOOR`` are given, the rest is found. float32. [S, FACTS]
        brackets_SN2: Where to search at first, then what was reached. float32. [S, NARROWINGS, 2]
        parts: Gets the sums of what lies over the lowest logit that stays.
        ties_SP: Gets how many ids have that logit. int32. [S, P]
        target: Of the kernels.
    """
    num_rows, size = logits_SV.shape
    num_parts = ties_SP.shape[1]
    stride, where = logits_SV.stride(0), logits_SV.device
    table = (num_rows, NARROWINGS, num_parts, EDGES)
    counts = torch.empty(table, dtype=torch.int32, device=where)
    masses = torch.empty(table, dtype=torch.float32, device=where)
    found = torch.empty((num_rows, OPEN.value), dtype=torch.float32, device=where)
    open_logits = torch.empty((num_rows, OPEN_IDS), dtype=torch.float32, device=where)
    shared = (logits_SV, kinds_S, facts_SF)
    searched = (brackets_SN2, counts, masses)
    shape = {"STEPS": NARROWINGS, "WIDTH": parts.width, "EDGES": EDGES, "BLOCK": PART}
    launch = target.launch(WARPS)
    grid = (num_rows, num_parts)
    for step in range(NARROWINGS):
        narrow_kernel[grid](
            *shared, *searched, stride, size, num_parts, STEP=step, **shape, **launch
        )
    gather_kernel[grid](
        *shared,
        *searched,
        found,
        open_logits,
        stride,
        size,
        num_parts,
        OPEN_IDS=OPEN_IDS,
        **shape,
        **launch,
    )
    search_kernel[(num_rows,)](
        *shared,
        found,
        open_logits,
        stride,
        size,
        EDGES=EDGES,
        OPEN_IDS=OPEN_IDS,
        BLOCK=SEARCHED,
        **launch,
    )
    keep_kernel[grid](
        *shared, parts.sums_SP, ties_SP, stride, size, num_parts, BLOCK=PART, **launch
    )
