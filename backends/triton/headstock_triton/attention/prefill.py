"""Attention of rows with several queries: blocks of queries scan their row's pages.

The heads that share a key/value head are packed into a block: row m of it is query ``m // group``
and head ``m % group``, so that one pass over the keys serves them all.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.attention.pages import first_seen, scan, with_sinks
from headstock_triton.overlap import begin

BLOCK_COLUMNS = 2
"""row, first query within the row."""


@triton.jit
def attend_queries(
    q,
    kv,
    tiles,
    page_table,
    query_starts,
    kv_lengths,
    blocks,
    totals,
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
    WINDOW: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    TMA: tl.constexpr,
    STAGES: tl.constexpr,
    NARROW: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from one block of queries of one row, for one key/value head.

    The blocks are taken from the list's end: later ones see more keys and should start first.
    """
    begin(PDL)
    block = tl.load(totals + 2) - 1 - tl.program_id(0)
    head = tl.program_id(1)
    if block < 0:
        return
    group: tl.constexpr = HEADS // KV_HEADS
    block_queries: tl.constexpr = BLOCK_M // group
    row = tl.load(blocks + block * 2)
    first_query = tl.load(blocks + block * 2 + 1)
    start = tl.load(query_starts + row)
    num_queries = tl.load(query_starts + row + 1) - start
    length = tl.load(kv_lengths + row)

    m = tl.arange(0, BLOCK_M)
    query_M = first_query + m // group
    inside_M = (query_M < num_queries) & (m < block_queries * group)
    # Rows that stand for no query see what the last one sees, so that nothing becomes NaN.
    limit_M = length - num_queries + tl.minimum(query_M, num_queries - 1)
    if not IS_CAUSAL:
        limit_M = limit_M * 0 + length - 1
    line_M = (start + query_M).to(tl.int64) * HEADS + head * group + m % group
    columns_D = tl.arange(0, BLOCK_D)
    inside_MD = inside_M[:, None] & (columns_D < D)[None, :]
    q_MD = tl.load(q + line_M[:, None] * D + columns_D[None, :], mask=inside_MD, other=0.0)

    max_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    seen_by_all = length - num_queries + first_query + 1
    whole = seen_by_all // BLOCK_N * BLOCK_N
    last_query = tl.minimum(first_query + block_queries, num_queries)
    last = length - num_queries + last_query
    if not IS_CAUSAL:
        last = length
        whole = length // BLOCK_N * BLOCK_N
    pages = page_table + row.to(tl.int64) * page_stride
    low = 0
    begin_whole = 0
    if WINDOW != 0:
        low = tl.maximum(first_seen(seen_by_all - 1, WINDOW), 0)
        begin_masked = low // BLOCK_N * BLOCK_N
        # The last query's window begins last: from there on all see every token.
        begin_whole = tl.maximum(first_seen(last - 1, WINDOW), 0)
        begin_whole = (begin_whole + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        begin_whole = tl.minimum(begin_whole, whole)
        max_M, sum_M, acc_MD = scan(
            q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, begin_masked, begin_whole, low,
            limit_M, scale, to_cap, KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, True, WINDOW, IS_CAPPED,
            TMA, STAGES, NARROW,
        )  # fmt: skip
    max_M, sum_M, acc_MD = scan(
        q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, begin_whole, whole, low, limit_M,
        scale, to_cap, KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, False, WINDOW, IS_CAPPED, TMA, STAGES,
        NARROW,
    )  # fmt: skip
    max_M, sum_M, acc_MD = scan(
        q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, whole, last, low, limit_M,
        scale, to_cap, KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, True, WINDOW, IS_CAPPED, TMA, STAGES,
        NARROW,
    )  # fmt: skip
    if HAS_SINKS:
        sink_M = tl.load(sinks + head * group + m % group) * 1.4426950408889634
        shrink_M, sum_M = with_sinks(max_M, sum_M, sink_M)
        acc_MD = acc_MD * shrink_M[:, None]
    out_MD = (acc_MD / sum_M[:, None]).to(out.dtype.element_ty)
    tl.store(out + line_M[:, None] * D + columns_D[None, :], out_MD, mask=inside_MD)
