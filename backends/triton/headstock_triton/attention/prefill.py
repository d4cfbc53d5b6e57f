"""Attention of rows with several queries: blocks of queries scan their row's pages, causally.

The heads that share a key/value head are packed into a block: row m of it is query ``m // group``
and head ``m % group``, so that one pass over the keys serves them all.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.attention.pages import scan
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
    out,
    scale,
    page_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    STAGES: tl.constexpr,
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
    pages = page_table + row.to(tl.int64) * page_stride
    max_M, sum_M, acc_MD = scan(
        q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, 0, whole, limit_M, scale,
        KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, False, TMA, STAGES,
    )  # fmt: skip
    max_M, sum_M, acc_MD = scan(
        q_MD, max_M, sum_M, acc_MD, kv, tiles, pages, head, whole, last, limit_M, scale,
        KV_HEADS, PAGE, D, BLOCK_D, BLOCK_N, True, TMA, STAGES,
    )  # fmt: skip
    out_MD = (acc_MD / sum_M[:, None]).to(out.dtype.element_ty)
    tl.store(out + line_M[:, None] * D + columns_D[None, :], out_MD, mask=inside_MD)
