"""Latent attention to tokens that were chosen for each query, and to no others.

A query's tokens are cut into equally many items, as many as fill the device when queries are few;
partials are those of :mod:`headstock_triton.latent.attend`.
Shapes: M heads of a program, N tokens of a tile, C features of a latent, E of the rotated key.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.latent.attend import merge_latents
from headstock_triton.latent.scan import load_queries
from headstock_triton.overlap import begin
from headstock_triton.sparse.scores import query_of_item


@triton.jit
def attend_chosen_latents(
    absorbed,
    q,
    kv,
    chosen,
    page_table,
    rows,
    query_starts,
    kv_lengths,
    counts,
    partial_o,
    partial_lse,
    out,
    scale,
    page_stride,
    K,
    ITEMS,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    KEY: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Attend from some heads of a query to one of the ITEMS parts of its K chosen tokens.

    Program ``program_id(0)`` has query ``program_id(0) // ITEMS``. A negative number is no token:
    such stand behind the others.
    """
    begin(PDL)
    token, place, is_real, row, seen = query_of_item(ITEMS, rows, query_starts, kv_lengths, counts)
    if not is_real:
        return
    count = tl.minimum(K, seen)  # a query chooses no more tokens than it sees
    share = ((K + ITEMS - 1) // ITEMS + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    first = place * share
    last = tl.minimum(first + share, count)
    head_M = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside_M = head_M < HEADS
    n = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    e = tl.arange(0, BLOCK_E)
    line_M = token.to(tl.int64) * HEADS + head_M
    q_MC, q_ME = load_queries(absorbed, q, line_M, inside_M, KEY, C, E, BLOCK_C, BLOCK_E)
    pages = page_table + row.to(tl.int64) * page_stride
    chosen += token.to(tl.int64) * K
    # Finite, so that differences of it are numbers where nothing is read.
    max_M = tl.full((BLOCK_M,), -1.0e38, tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MC = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        at_N = tl.load(chosen + start + n, mask=start + n < last, other=-1)
        is_there_N = at_N >= 0
        at_N = tl.maximum(at_N, 0)
        page_N = tl.load(pages + at_N // PAGE, mask=is_there_N, other=0).to(tl.int64)
        at_N1 = kv + ((page_N * PAGE + at_N % PAGE) * (C + E))[:, None]
        is_there_N1 = is_there_N[:, None]
        k_NC = tl.load(at_N1 + c[None, :], mask=is_there_N1 & (c < C)[None, :], other=0.0)
        k_NE = tl.load(at_N1 + C + e[None, :], mask=is_there_N1 & (e < E)[None, :], other=0.0)
        k_NC = k_NC.to(q_MC.dtype)
        scores_MN = tl.dot(q_ME, tl.trans(k_NE.to(q_MC.dtype)), input_precision="ieee")
        scores_MN = tl.dot(q_MC, tl.trans(k_NC), scores_MN, input_precision="ieee")
        scores_MN = tl.where(is_there_N[None, :], scores_MN * scale, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1))
        weights_MN = tl.exp2(scores_MN - new_max_M[:, None])
        shrink_M = tl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
        acc_MC = acc_MC * shrink_M[:, None]
        acc_MC = tl.dot(weights_MN.to(q_MC.dtype), k_NC, acc_MC, input_precision="ieee")
        max_M = new_max_M
    is_empty_M = sum_M == 0.0
    out_MC = acc_MC / tl.where(is_empty_M, 1.0, sum_M)[:, None]
    inside_MC = inside_M[:, None] & (c < C)[None, :]
    if ITEMS == 1:
        at_MC = out + line_M[:, None] * C + c[None, :]
        tl.store(at_MC, out_MC.to(out.dtype.element_ty), mask=inside_MC)
    else:
        lse_M = (max_M + tl.log2(tl.where(is_empty_M, 1.0, sum_M))) * 0.6931471805599453
        at_M = tl.program_id(0).to(tl.int64) * HEADS + head_M
        lse_M = tl.where(is_empty_M, float("-inf"), lse_M)
        tl.store(partial_lse + at_M, lse_M, mask=inside_M)
        tl.store(partial_o + at_M[:, None] * C + c[None, :], out_MC, mask=inside_MC)


@triton.jit
def merge_chosen_latents(
    counts,
    partial_o,
    partial_lse,
    out,
    ITEMS,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """Merge the ITEMS partials of query ``program_id(0)`` and head ``program_id(1)``."""
    begin(PDL)
    token = tl.program_id(0)
    head = tl.program_id(1)
    if token >= tl.load(counts + 1):
        return
    first = token * ITEMS
    merged_C = merge_latents(partial_o, partial_lse, first, ITEMS, head, HEADS, C, BLOCK_C, BLOCK_S)
    c = tl.arange(0, BLOCK_C)
    line = token.to(tl.int64) * HEADS + head
    tl.store(out + line * C + c, merged_C.to(out.dtype.element_ty), mask=c < C)
