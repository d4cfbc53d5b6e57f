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

CHUNK = 512
"""Ids of a part that a program compares with the thresholds at a time."""

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
def read_step(edges, counts, masses, facts, step, PARTS, WIDTH: tl.constexpr, EDGES: tl.constexpr):
    """Find the lowest threshold of a step that is enough: never the first, at worst the last.

    Returns:
        The thresholds [EDGES], the place of the one found, how many ids of each part lie over each
        [WIDTH, EDGES], and the mass over each [EDGES].
    """
    places = tl.arange(0, EDGES)
    parts = tl.arange(0, WIDTH)
    edge_E = tl.load(edges + step * EDGES + places)
    at = step * PARTS * EDGES + parts[:, None] * EDGES + places[None, :]
    inside = (parts < PARTS)[:, None]
    count_PE = tl.load(counts + at, mask=inside, other=0)
    mass_E = tl.sum(tl.load(masses + at, mask=inside, other=0.0), axis=0)
    enough = is_enough(edge_E, tl.sum(count_PE, axis=0), mass_E, facts) & (places > 0)
    return edge_E, tl.min(tl.where(enough, places, EDGES - 1), axis=0), count_PE, mass_E


@triton.jit
def narrow_kernel(
    logits,
    kinds,
    facts,
    edges,
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
    CHUNK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Count and sum what of a part lies over each of EDGES thresholds.

    The thresholds of the first step are given in ``edges`` [S, STEPS, EDGES]; those of each next
    one follow from the ``counts`` and ``masses`` [S, STEPS, P, EDGES] of the step before.
    """
    begin(PDL)
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if tl.load(kinds + row) != FILTERED:
        return
    facts += row * FACTS
    places = tl.arange(0, EDGES)
    step = row * STEPS + STEP
    if STEP == 0:
        edge_E = tl.load(edges + step * EDGES + places)
    else:
        before, place, _, _ = read_step(edges, counts, masses, facts, step - 1, PARTS, WIDTH, EDGES)
        low, high = at_place(before, places, place - 1), at_place(before, places, place)
        edge_E = edges_between(low, high, EDGES)
        if part == 0:
            # For the next kernels, which might round otherwise.
            tl.store(edges + step * EDGES + places, edge_E)
    peak, scale = tl.load(facts + PEAK), tl.load(facts + SCALE)
    # Sums of a chunk's places stay apart until the end: few registers, one exchange of threads.
    count_CE = tl.zeros([CHUNK, EDGES], tl.int32)
    mass_CE = tl.zeros([CHUNK, EDGES], tl.float32)
    for chunk in tl.range(0, BLOCK // CHUNK, num_stages=3):
        x, _ids = load_logits(logits, row, part * (BLOCK // CHUNK) + chunk, stride, V, CHUNK)
        over = x[:, None] > edge_E[None, :]
        count_CE += over.to(tl.int32)
        mass_CE += tl.where(over, weigh(x, peak, scale)[:, None], 0.0)
    at = (step * PARTS + part) * EDGES + places
    tl.store(counts + at, tl.sum(count_CE, axis=0))
    tl.store(masses + at, tl.sum(mass_CE, axis=0))


@triton.jit
def gather_kernel(
    logits,
    kinds,
    facts,
    edges,
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
    edge_E, place, count_PE, mass_E = read_step(
        edges, counts, masses, facts + row * FACTS, row * STEPS + STEPS - 1, PARTS, WIDTH, EDGES
    )
    places = tl.arange(0, EDGES)
    low, high = at_place(edge_E, places, place - 1), at_place(edge_E, places, place)
    sign_E = (places == place - 1).to(tl.int32) - (places == place).to(tl.int32)
    open_P = tl.sum(count_PE * sign_E[None, :], axis=1)
    num_open = tl.sum(open_P, axis=0)
    parts = tl.arange(0, WIDTH)
    if part == 0:
        found += row * OPEN
        tl.store(found + LOW, low)
        tl.store(found + HIGH, high)
        count_over = at_place(tl.sum(count_PE, axis=0), places, place)
        tl.store(found + COUNT_OVER, count_over.to(tl.float32))
        tl.store(found + MASS_OVER, at_place(mass_E, places, place))
        tl.store(found + COUNT_OPEN, num_open.to(tl.float32))
    if (num_open <= OPEN_IDS) & (at_place(open_P, parts, part) > 0):
        x, _ = load_logits(logits, row, part, stride, V, BLOCK)
        is_open = (x > low) & (x <= high)
        first = tl.sum(tl.where(parts < part, open_P, 0), axis=0)
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
        pace = (high - low + EDGES - 1) // EDGES
        places = tl.arange(0, EDGES)
        order_E = tl.minimum(low + pace * (places + 1), high)
        edge_E = float_of(order_E)
        count_E = tl.zeros([EDGES], tl.int32) + count_over
        mass_E = tl.zeros([EDGES], tl.float32) + mass_over
        for begins in range(0, size, BLOCK):
            at = begins + tl.arange(0, BLOCK)
            x = tl.load(source + at, mask=at < size, other=-INFINITY)
            over = ((x > first) & (x <= last))[:, None] & (x[:, None] > edge_E[None, :])
            count_E += tl.sum(over.to(tl.int32), axis=0)
            mass_E += tl.sum(tl.where(over, weigh(x, peak, scale)[:, None], 0.0), axis=0)
        enough = is_enough(edge_E, count_E, mass_E, facts) | (order_E == high)
        place = tl.min(tl.where(enough, places, EDGES - 1), axis=0)
        reached = at_place(order_E, places, place)
        mass = tl.where(reached < high, at_place(mass_E, places, place), mass)
        low = tl.where(place > 0, at_place(order_E, places, place - 1), low)
        high = reached
    stays_from = float_of(high)
    room = (tl.load(facts + MASS_LIMIT) - mass) / weigh(stays_from, peak, scale)
    tl.store(facts + STAYS_FROM, stays_from)
    tl.store(facts + TIES_KEPT, tl.minimum(tl.maximum(tl.ceil(room), 1.0), V * 1.0))


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
    edges_SNE: Tensor,
    parts: Parts,
    ties_SP: Tensor,
    target: Target,
) -> None:
    """Find what stays of the rows that filter.

    Args:
        logits_SV: float32. [S, V]
        kinds_S: ``FILTERED`` where there is something to do. int32. [S]
        facts_SF: Places up to ``FLOOR`` are given, the rest is found. float32. [S, FACTS]
        edges_SNE: The first thresholds are given, the next found. float32. [S, NARROWINGS, E]
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
    searched = (edges_SNE, counts, masses)
    sizes = (stride, size, num_parts)
    shape = {"STEPS": NARROWINGS, "WIDTH": parts.width, "EDGES": EDGES, "BLOCK": PART}
    launch = target.launch(WARPS)
    grid = (num_rows, num_parts)
    for step in range(NARROWINGS):
        narrow_kernel[grid](*shared, *searched, *sizes, STEP=step, CHUNK=CHUNK, **shape, **launch)
    gather_kernel[grid](
        *shared, *searched, found, open_logits, *sizes, OPEN_IDS=OPEN_IDS, **shape, **launch
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
    keep_kernel[grid](*shared, parts.sums_SP, ties_SP, *sizes, BLOCK=PART, **launch)
