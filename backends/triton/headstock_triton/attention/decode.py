"""Attention of rows with one query: keys are split over the device, partials merged in order.

Two kernels share one work list form. ``attend_nodes`` reads a prefix that several rows share once
for all of them; ``attend_tails`` reads what is left of each row, and whichever of a row's programs
comes last merges the row's partials: nodes from the root on, then the tail, by ascending token.
Partials are float32: the output normalised within the part, and its natural log-sum-exp.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.attention.pages import first_seen, scan, with_sinks
from headstock_triton.overlap import begin

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

TAIL_COLUMNS = 4
"""row, first token, last token + 1, partial."""
NODE_COLUMNS = 5
"""first row, rows, first token, last token + 1, place among its rows' partials."""
ROW_COLUMNS = 3
"""first partial, partials, partials that tail programs write."""


@triton.jit
def attend_nodes(
    q,
    kv,
    tiles,
    page_table,
    query_starts,
    items,
    totals,
    row_table,
    partial_o,
    partial_lse,
    scale,
    to_cap,
    page_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    TMA: tl.constexpr,
    STAGES: tl.constexpr,
    NARROW: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from all rows of item ``program_id(0)`` to its tokens, for one key/value head."""
    item = tl.program_id(0)
    head = tl.program_id(1)
    begin(PDL)
    if item >= tl.load(totals + 1):
        return
    group: tl.constexpr = HEADS // KV_HEADS
    entry = items + item * 5
    first_row = tl.load(entry)
    num_rows = tl.load(entry + 1)
    first = tl.load(entry + 2)
    last = tl.load(entry + 3)
    place = tl.load(entry + 4)

    m = tl.arange(0, BLOCK_M)
    row_M = first_row + m // group
    inside_M = m < num_rows * group
    start_M = tl.load(query_starts + row_M, mask=inside_M, other=0)
    end_M = tl.load(query_starts + row_M + 1, mask=inside_M, other=0)
    inside_M = inside_M & (end_M - start_M == 1)
    line_M = start_M.to(tl.int64) * HEADS + head * group + m % group
    columns_D = tl.arange(0, BLOCK_D)
    inside_MD = inside_M[:, None] & (columns_D < D)[None, :]
    q_MD = tl.load(q + line_M[:, None] * D + columns_D[None, :], mask=inside_MD, other=0.0)

    max_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    whole = first + (last - first) // BLOCK_N * BLOCK_N
    pages = page_table + first_row.to(tl.int64) * page_stride
    limit_M = tl.zeros((BLOCK_M,), tl.int32) + last
    max_M, sum_M, acc_MD = scan(
        q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, first, whole, 0, limit_M, scale,
        to_cap, KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, False, 0, IS_CAPPED, TMA, STAGES, NARROW,
    )  # fmt: skip
    max_M, sum_M, acc_MD = scan(
        q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, whole, last, 0, limit_M, scale,
        to_cap, KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, True, 0, IS_CAPPED, TMA, STAGES, NARROW,
    )  # fmt: skip
    partial_M = tl.load(row_table + row_M * 3, mask=inside_M, other=0) + place
    at_M = partial_M.to(tl.int64) * HEADS + head * group + m % group
    tl.store(partial_lse + at_M, (max_M + tl.log2(sum_M)) * 0.6931471805599453, mask=inside_M)
    out_MD = acc_MD / sum_M[:, None]
    tl.store(partial_o + at_M[:, None] * D + columns_D[None, :], out_MD, mask=inside_MD)


@triton.jit
def attend_tails(
    q,
    kv,
    tiles,
    page_table,
    query_starts,
    kv_lengths,
    items,
    totals,
    row_table,
    partial_o,
    partial_lse,
    arrivals,
    sinks,
    out,
    scale,
    to_cap,
    page_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    WINDOW: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    TMA: tl.constexpr,
    STAGES: tl.constexpr,
    NARROW: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from the row of item ``program_id(1)`` to its tokens; merge the row if last.

    Heads of one item run together: a page's keys of all heads are neighbours in memory. An item is
    read before it is known to be one, so that one look at the memory less comes before the keys.
    """
    head = tl.program_id(0)
    item = tl.program_id(1)
    begin(PDL)
    group: tl.constexpr = HEADS // KV_HEADS
    entry = items + item * 4
    row = tl.load(entry)
    first = tl.load(entry + 1)
    last = tl.load(entry + 2)
    partial = tl.load(entry + 3)
    if item >= tl.load(totals):
        return
    first_partial = tl.load(row_table + row * 3)
    num_partials = tl.load(row_table + row * 3 + 1)
    num_arrivals = tl.load(row_table + row * 3 + 2)

    m = tl.arange(0, BLOCK_M)
    columns_D = tl.arange(0, BLOCK_D)
    inside_MD = (m < group)[:, None] & (columns_D < D)[None, :]
    token = tl.load(query_starts + row).to(tl.int64)
    line_M = token * HEADS + head * group + m
    q_MD = tl.load(q + line_M[:, None] * D + columns_D[None, :], mask=inside_MD, other=0.0)

    max_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    pages = page_table + row.to(tl.int64) * page_stride
    limit_M = tl.zeros((BLOCK_M,), tl.int32) + last
    low = first
    if WINDOW != 0:  # The first item begins with the tile that the window begins in.
        own = tl.load(kv_lengths + row) - 1
        limit_M = limit_M - last + own
        low = tl.maximum(first, first_seen(own, WINDOW))
    max_M, sum_M, acc_MD = scan(
        q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, first, last, low, limit_M, scale,
        to_cap, KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, True, WINDOW, IS_CAPPED, TMA, STAGES, NARROW,
    )  # fmt: skip
    if HAS_SINKS and num_partials == 1:
        sink_M = tl.load(sinks + head * group + m % group) * 1.4426950408889634
        shrink_M, sum_M = with_sinks(max_M, sum_M, sink_M)
        acc_MD = acc_MD * shrink_M[:, None]
    out_MD = acc_MD / sum_M[:, None]
    if num_partials == 1:
        out_at_MD = out + line_M[:, None] * D + columns_D[None, :]
        tl.store(out_at_MD, out_MD.to(out.dtype.element_ty), mask=inside_MD)
    else:
        at_M = partial.to(tl.int64) * HEADS + head * group + m
        lse_M = (max_M + tl.log2(sum_M)) * 0.6931471805599453
        tl.store(partial_lse + at_M, lse_M, mask=m < group)
        tl.store(partial_o + at_M[:, None] * D + columns_D[None, :], out_MD, mask=inside_MD)
        tl.debug_barrier()
        ticket = arrivals + row * KV_HEADS + head
        earlier = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
        if earlier == num_arrivals - 1:
            tl.debug_barrier()
            merged_GD = merge(
                partial_o, partial_lse, sinks, first_partial, num_partials, head,
                HEADS, group, D, BLOCK_D, BLOCK_G, BLOCK_S, HAS_SINKS,
            )  # fmt: skip
            g = tl.arange(0, BLOCK_G)
            line_G = token * HEADS + head * group + g
            tl.store(
                out + line_G[:, None] * D + columns_D[None, :],
                merged_GD.to(out.dtype.element_ty),
                mask=(g < group)[:, None] & (columns_D < D)[None, :],
            )
            tl.atomic_xchg(ticket, 0, sem="relaxed", scope="gpu")


@triton.jit
def merge(
    partial_o,
    partial_lse,
    sinks,
    first_partial,
    num_partials,
    head,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):
    """Merge the partials of one row and key/value head by ascending place, the sinks last.

    Returns:
        float32. [BLOCK_G, BLOCK_D]
    """
    s = tl.arange(0, BLOCK_S)
    g = tl.arange(0, BLOCK_G)
    columns_D = tl.arange(0, BLOCK_D)
    max_G = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    sum_G = tl.zeros((BLOCK_G,), tl.float32)
    acc_GD = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    for done in range(0, num_partials, BLOCK_S):
        inside_SG = (done + s < num_partials)[:, None] & (g < GROUP)[None, :]
        at_S = (first_partial + done + s).to(tl.int64) * HEADS + head * GROUP
        at_SG = at_S[:, None] + g[None, :]
        lse_SG = tl.load(partial_lse + at_SG, mask=inside_SG, other=float("-inf"))
        o_at_SGD = partial_o + at_SG[:, :, None] * D + columns_D[None, None, :]
        inside_SGD = inside_SG[:, :, None] & (columns_D < D)[None, None, :]
        o_SGD = tl.load(o_at_SGD, mask=inside_SGD, other=0.0)
        new_max_G = tl.maximum(max_G, tl.max(lse_SG, axis=0))
        # Rows of the padded group have no partial; a finite maximum keeps them free of NaN.
        safe_max_G = tl.where(new_max_G == float("-inf"), 0.0, new_max_G)
        weight_SG = tl.exp(lse_SG - safe_max_G[None, :])
        shrink_G = tl.exp(max_G - safe_max_G)
        sum_G = sum_G * shrink_G + tl.sum(weight_SG, axis=0)
        acc_GD = acc_GD * shrink_G[:, None] + tl.sum(weight_SG[:, :, None] * o_SGD, axis=0)
        max_G = new_max_G
    if HAS_SINKS:
        sink_G = tl.load(sinks + head * GROUP + g % GROUP) * 1.4426950408889634
        shrink_G, sum_G = with_sinks(max_G * 1.4426950408889634, sum_G, sink_G)
        acc_GD = acc_GD * shrink_G[:, None]
    return acc_GD / tl.where(sum_G == 0.0, 1.0, sum_G)[:, None]
