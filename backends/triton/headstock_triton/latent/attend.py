"""Kernels of latent attention: the step's plan, rows of one query, blocks of queries, the merge.

Rows of one query are cut into items of about equally many tokens, as many as fill the device;
what an item makes is a partial (output normalised within it, natural log-sum-exp), and the merge
adds up a row's by ascending token. Blocks of queries are not cut: there are enough of them.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.latent.scan import load_queries, scan_latents
from headstock_triton.overlap import begin


@triton.jit
def items_of(length, chunk):
    """Return into how many items a row is cut: the nearest whole number, one at least."""
    return tl.maximum((length + chunk // 2) // chunk, 1)


@triton.jit(do_not_specialize=["NUM_ROWS", "SPREAD"])
def plan_latents(
    query_starts,
    kv_lengths,
    counts,
    first_items,
    first_blocks,
    totals,
    NUM_ROWS,
    SPREAD,
    MIN_CHUNK: tl.constexpr,
    QUERIES: tl.constexpr,
    ROWS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Fill each row's first item and first block, and totals: items, blocks, tokens of an item.

    Args:
        query_starts: As in the step batch. [R + 1]
        kv_lengths: Likewise. [R]
        counts: Likewise.
        first_items: [R]
        first_blocks: [R]
        totals: [3]
        NUM_ROWS: R, padded.
        SPREAD: Items to aim at.
        MIN_CHUNK: Least tokens of an item.
        QUERIES: Queries of a block.
        ROWS: R or more, a power of two.
        PDL: See :mod:`headstock_triton.overlap`.
    """
    begin(PDL)
    row_R = tl.arange(0, ROWS)
    is_real_R = (row_R < tl.load(counts)) & (row_R < NUM_ROWS)
    start_R = tl.load(query_starts + row_R, mask=is_real_R, other=0)
    queries_R = tl.load(query_starts + row_R + 1, mask=is_real_R, other=0) - start_R
    length_R = tl.load(kv_lengths + row_R, mask=is_real_R, other=0)
    is_decode_R = is_real_R & (queries_R == 1)
    work = tl.sum(tl.where(is_decode_R, length_R, 0), axis=0)
    chunk = tl.maximum((work + SPREAD - 1) // SPREAD, MIN_CHUNK)
    items_R = tl.where(is_decode_R, items_of(length_R, chunk), 0)
    blocks_R = tl.where(queries_R > 1, (queries_R + QUERIES - 1) // QUERIES, 0)
    inside_R = row_R < NUM_ROWS
    tl.store(first_items + row_R, tl.cumsum(items_R, axis=0) - items_R, mask=inside_R)
    tl.store(first_blocks + row_R, tl.cumsum(blocks_R, axis=0) - blocks_R, mask=inside_R)
    tl.store(totals, tl.sum(items_R, axis=0))
    tl.store(totals + 1, tl.sum(blocks_R, axis=0))
    tl.store(totals + 2, chunk)


@triton.jit
def row_of(firsts, index, NUM_ROWS, ROWS: tl.constexpr):
    """Return which row has item or block ``index``, and which of the row's it is."""
    row_R = tl.arange(0, ROWS)
    first_R = tl.load(firsts + row_R, mask=row_R < NUM_ROWS, other=2147483647)
    row = tl.sum((first_R <= index).to(tl.int32), axis=0) - 1
    return row, index - tl.load(firsts + row)


@triton.jit(do_not_specialize=["NUM_ROWS"])
def attend_latent_items(
    absorbed,
    q,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    first_items,
    totals,
    partial_o,
    partial_lse,
    out,
    scale,
    page_stride,
    NUM_ROWS,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    KEY: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from some heads of one row's query to the tokens of item ``program_id(1)``."""
    begin(PDL)
    item = tl.program_id(1)
    if item >= tl.load(totals):
        return
    row, place = row_of(first_items, item, NUM_ROWS, ROWS)
    length = tl.load(kv_lengths + row)
    items = items_of(length, tl.load(totals + 2))
    share = (length + items - 1) // items
    share = (share + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    first = place * share
    last = tl.minimum(first + share, length)
    head_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_M = head_M < HEADS
    c = tl.arange(0, BLOCK_C)
    inside_MC = inside_M[:, None] & (c < C)[None, :]
    line_M = tl.load(query_starts + row).to(tl.int64) * HEADS + head_M
    q_MC, q_ME = load_queries(absorbed, q, line_M, inside_M, KEY, C, E, BLOCK_C, BLOCK_E)
    limit_M = tl.zeros((BLOCK_M,), tl.int32) + last
    pages = page_table + row.to(tl.int64) * page_stride
    max_M, sum_M, acc_MC = scan_latents(
        q_MC, q_ME, kv, pages, first, last, limit_M, scale,
        PAGE, C, E, BLOCK_M, BLOCK_C, BLOCK_E, BLOCK_N, STAGES,
    )  # fmt: skip
    # Rounding shares up may leave a row's last items nothing: their partial is empty.
    is_empty = first >= last
    out_MC = acc_MC / tl.where(is_empty, 1.0, sum_M)[:, None]
    if items == 1:
        tl.store(
            out + line_M[:, None] * C + c[None, :], out_MC.to(out.dtype.element_ty), mask=inside_MC
        )
    else:
        at_M = item.to(tl.int64) * HEADS + head_M
        lse_M = (max_M + tl.log2(tl.where(is_empty, 1.0, sum_M))) * 0.6931471805599453
        tl.store(partial_lse + at_M, lse_M, mask=inside_M)
        tl.store(partial_o + at_M[:, None] * C + c[None, :], out_MC, mask=inside_MC)


@triton.jit
def merge_latents(
    partial_o,
    partial_lse,
    first,
    items,
    head,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Return what partials [first, first + items) of a head make, by ascending token. [C]"""
    c = tl.arange(0, BLOCK_C)
    s = tl.arange(0, BLOCK_S)
    largest = float("-inf")
    whole = 0.0
    acc_C = tl.zeros((BLOCK_C,), tl.float32)
    for done in range(0, items, BLOCK_S):
        at_S = (first + done + s).to(tl.int64) * HEADS + head
        inside_S = done + s < items
        lse_S = tl.load(partial_lse + at_S, mask=inside_S, other=float("-inf"))
        inside_SC = inside_S[:, None] & (c < C)[None, :]
        o_SC = tl.load(partial_o + at_S[:, None] * C + c[None, :], mask=inside_SC, other=0.0)
        new_largest = tl.maximum(largest, tl.max(lse_S, axis=0))
        weight_S = tl.exp(lse_S - new_largest)
        shrink = tl.exp(largest - new_largest)
        whole = whole * shrink + tl.sum(weight_S, axis=0)
        acc_C = acc_C * shrink + tl.sum(o_SC * weight_S[:, None], axis=0)
        largest = new_largest
    return acc_C / whole


@triton.jit
def merge_latent_items(
    query_starts,
    kv_lengths,
    counts,
    first_items,
    totals,
    partial_o,
    partial_lse,
    out,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the partials of row ``program_id(0)`` and head ``program_id(1)``."""
    begin(PDL)
    row = tl.program_id(0)
    head = tl.program_id(1)
    if row >= tl.load(counts):
        return
    start = tl.load(query_starts + row)
    items = items_of(tl.load(kv_lengths + row), tl.load(totals + 2))
    if (tl.load(query_starts + row + 1) - start != 1) | (items == 1):
        return
    first = tl.load(first_items + row)
    merged_C = merge_latents(partial_o, partial_lse, first, items, head, HEADS, C, BLOCK_C, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    line = start.to(tl.int64) * HEADS + head
    tl.store(out + line * C + c, merged_C.to(out.dtype.element_ty), mask=c < C)


@triton.jit(do_not_specialize=["NUM_ROWS"])
def attend_latent_blocks(
    absorbed,
    q,
    kv,
    page_table,
    query_starts,
    kv_lengths,
    first_blocks,
    totals,
    out,
    scale,
    page_stride,
    NUM_ROWS,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    KEY: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from some heads of a few queries of one row to all that they see.

    Blocks are taken from the list's end: later ones see more tokens and should start first.
    """
    begin(PDL)
    block = tl.load(totals + 1) - 1 - tl.program_id(1)
    if block < 0:
        return
    row, place = row_of(first_blocks, block, NUM_ROWS, ROWS)
    start = tl.load(query_starts + row)
    num_queries = tl.load(query_starts + row + 1) - start
    length = tl.load(kv_lengths + row)
    m = tl.arange(0, BLOCK_M)
    queries: tl.constexpr = BLOCK_M // BLOCK_H
    query_M = place * queries + m // BLOCK_H
    head_M = tl.program_id(0) * BLOCK_H + m % BLOCK_H
    inside_M = (query_M < num_queries) & (head_M < HEADS)
    # Rows that stand for no query see what the last one sees, so that nothing becomes NaN.
    limit_M = length - num_queries + tl.minimum(query_M, num_queries - 1)
    last = length - num_queries + tl.minimum((place + 1) * queries, num_queries)
    c = tl.arange(0, BLOCK_C)
    line_M = (start + query_M).to(tl.int64) * HEADS + head_M
    q_MC, q_ME = load_queries(absorbed, q, line_M, inside_M, KEY, C, E, BLOCK_C, BLOCK_E)
    pages = page_table + row.to(tl.int64) * page_stride
    _, sum_M, acc_MC = scan_latents(
        q_MC, q_ME, kv, pages, 0, last, limit_M, scale,
        PAGE, C, E, BLOCK_M, BLOCK_C, BLOCK_E, BLOCK_N, STAGES,
    )  # fmt: skip
    out_MC = (acc_MC / sum_M[:, None]).to(out.dtype.element_ty)
    inside_MC = inside_M[:, None] & (c < C)[None, :]
    tl.store(out + line_M[:, None] * C + c[None, :], out_MC, mask=inside_MC)
