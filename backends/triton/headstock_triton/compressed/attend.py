"""Kernels of attention to a window of tokens and to entries, in one softmax with sinks.

What a query reads are its window's tokens, then its entries: all that it sees, or those that were
chosen for it. They are cut into equally many items, as many as fill the device when queries are
few; what an item makes is a partial (output normalised within it, natural log-sum-exp), and the
merge adds up a query's. A sink counts once: in the merge, or where there is one item.

Shapes: M heads of a program, N tokens or entries of a tile, D features of a vector.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin
from headstock_triton.sparse.scores import entry_lines, query_of_item

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def add_tile(
    q_MD, kv, line_N, is_there_N, d, max_M, sum_M, acc_MD, scale, D: tl.constexpr
):  # fmt: skip
    """Return running maxima (base 2), sums and outputs with the vectors at some lines added."""
    inside_ND = is_there_N[:, None] & (d < D)[None, :]
    k_ND = tl.load(kv + line_N[:, None] * D + d[None, :], mask=inside_ND, other=0.0)
    k_ND = k_ND.to(q_MD.dtype)
    scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
    scores_MN = tl.where(is_there_N[None, :], scores_MN * scale, float("-inf"))
    new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1))
    weights_MN = tl.exp2(scores_MN - new_max_M[:, None])
    shrink_M = tl.exp2(max_M - new_max_M)
    sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
    acc_MD = acc_MD * shrink_M[:, None]
    acc_MD = tl.dot(weights_MN.to(q_MD.dtype), k_ND, acc_MD, input_precision="ieee")
    return new_max_M, sum_M, acc_MD


@triton.jit(do_not_specialize=["MOST", "ITEMS"])
def attend_entries(
    q,
    sinks,
    kv,
    entries,
    chosen,
    page_table,
    entry_table,
    rows,
    query_starts,
    kv_lengths,
    counts,
    partial_o,
    partial_lse,
    out,
    scale,
    page_stride,
    entry_stride,
    MOST,
    ITEMS,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    RATE: tl.constexpr,
    IS_CHOSEN: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from some heads of a query to one of the ITEMS parts of what it reads.

    Program ``program_id(0)`` has query ``program_id(0) // ITEMS``. RATE 0 is without entries; with
    IS_CHOSEN a query reads at most MOST of them, and negative numbers stand behind the others.
    IS_WHOLE says that ITEMS is 1.
    """
    begin(PDL)
    token, place, is_real, row, seen = query_of_item(ITEMS, rows, query_starts, kv_lengths, counts)
    if not is_real:
        return
    near = tl.minimum(seen, WINDOW)
    far = 0
    if RATE > 0:
        far = seen // RATE
    if IS_CHOSEN:
        far = tl.minimum(far, MOST)
    share = ((near + far + ITEMS - 1) // ITEMS + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    first = place * share
    last = tl.minimum(first + share, near + far)
    head_M = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_M = head_M < HEADS
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    line_M = token.to(tl.int64) * HEADS + head_M
    inside_MD = inside_M[:, None] & (d < D)[None, :]
    q_MD = tl.load(q + line_M[:, None] * D + d[None, :], mask=inside_MD, other=0.0)
    # Finite, so that differences of it are numbers where nothing is read.
    max_M = tl.full((BLOCK_M,), -1.0e38, tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    pages = page_table + row.to(tl.int64) * page_stride
    for start in tl.range(first, tl.minimum(last, near), BLOCK_N, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        at_N = start + n
        is_there_N = at_N < tl.minimum(last, near)
        at_N = seen - near + at_N
        page_N = tl.load(pages + at_N // PAGE, mask=is_there_N, other=0).to(tl.int64)
        line_N = page_N * PAGE + at_N % PAGE
        max_M, sum_M, acc_MD = add_tile(
            q_MD, kv, line_N, is_there_N, d, max_M, sum_M, acc_MD, scale, D
        )
    if RATE > 0:
        pages = entry_table + row.to(tl.int64) * entry_stride
        for start in tl.range(tl.maximum(first, near), last, BLOCK_N, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
            at_N = start - near + n
            is_there_N = at_N < last - near
            if IS_CHOSEN:
                at_N = tl.load(chosen + token.to(tl.int64) * MOST + at_N, mask=is_there_N, other=-1)
                is_there_N = at_N >= 0
            line_N = entry_lines(pages, at_N, is_there_N, PAGE, RATE)
            max_M, sum_M, acc_MD = add_tile(
                q_MD, entries, line_N, is_there_N, d, max_M, sum_M, acc_MD, scale, D
            )
    if IS_WHOLE:
        sink_M = tl.load(sinks + head_M, mask=inside_M, other=0.0) * LOG2_E
        new_max_M = tl.maximum(max_M, sink_M)
        shrink_M = tl.exp2(max_M - new_max_M)
        whole_M = sum_M * shrink_M + tl.exp2(sink_M - new_max_M)
        out_MD = acc_MD * (shrink_M / whole_M)[:, None]
        to_MD = out + line_M[:, None] * D + d[None, :]
        tl.store(to_MD, out_MD.to(out.dtype.element_ty), mask=inside_MD)
    else:
        is_empty_M = sum_M == 0.0
        whole_M = tl.where(is_empty_M, 1.0, sum_M)
        lse_M = tl.where(is_empty_M, float("-inf"), (max_M + tl.log2(whole_M)) * LN_2)
        at_M = tl.program_id(0).to(tl.int64) * HEADS + head_M
        tl.store(partial_lse + at_M, lse_M, mask=inside_M)
        part_MD = partial_o + at_M[:, None] * D + d[None, :]
        tl.store(part_MD, acc_MD / whole_M[:, None], mask=inside_MD)


@triton.jit(do_not_specialize=["ITEMS"])
def merge_entries(
    counts,
    sinks,
    partial_o,
    partial_lse,
    out,
    ITEMS,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the ITEMS partials of query ``program_id(0)`` and head ``program_id(1)``."""
    begin(PDL)
    token = tl.program_id(0)
    head = tl.program_id(1)
    if token >= tl.load(counts + 1):
        return
    d = tl.arange(0, BLOCK_D)
    s = tl.arange(0, BLOCK_S)
    largest = tl.load(sinks + head)
    whole = 1.0
    acc_D = tl.zeros((BLOCK_D,), tl.float32)
    for done in range(0, ITEMS, BLOCK_S):
        at_S = (token * ITEMS + done + s).to(tl.int64) * HEADS + head
        inside_S = done + s < ITEMS
        lse_S = tl.load(partial_lse + at_S, mask=inside_S, other=float("-inf"))
        inside_SD = inside_S[:, None] & (d < D)[None, :]
        o_SD = tl.load(partial_o + at_S[:, None] * D + d[None, :], mask=inside_SD, other=0.0)
        new_largest = tl.maximum(largest, tl.max(lse_S, axis=0))
        weight_S = tl.exp(lse_S - new_largest)
        shrink = tl.exp(largest - new_largest)
        whole = whole * shrink + tl.sum(weight_S, axis=0)
        acc_D = acc_D * shrink + tl.sum(o_SD * weight_S[:, None], axis=0)
        largest = new_largest
    line = token.to(tl.int64) * HEADS + head
    tl.store(out + line * D + d, (acc_D / whole).to(out.dtype.element_ty), mask=d < D)


@triton.jit
def store_vectors(
    vectors, kv, slots, stride, D: tl.constexpr, BLOCK_D: tl.constexpr, PDL: tl.constexpr
):
    """Store the vector of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    at_D = kv + tl.load(slots + token) * D + d
    vector_D = tl.load(vectors + token * stride + d, mask=d < D)
    tl.store(at_D, vector_D.to(kv.dtype.element_ty), mask=d < D)
