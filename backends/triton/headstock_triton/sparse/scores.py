"""Scores of cached tokens, and of blocks of them, by the small heads of an indexer.

Shapes: H heads of the indexer, D features of its keys, E of them rotated, N tokens of a tile.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin


@triton.jit
def turn_kernel(
    q,
    k,
    cos_sin,
    positions,
    slots,
    turned,
    kv,
    q_stride,
    k_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rotate token ``program_id(0)``: its key, into its page, or BLOCK_H heads of its query."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    pairs: tl.constexpr = E // 2
    f = tl.arange(0, BLOCK_F)
    d = E + tl.arange(0, BLOCK_D)
    first_F = 2 * f if IS_INTERLEAVED else f
    second_F = first_F + 1 if IS_INTERLEAVED else f + pairs
    angle = cos_sin + tl.load(positions + token) * E
    cos_F = tl.load(angle + f, mask=f < pairs, other=0.0)[None, :]
    sin_F = tl.load(angle + pairs + f, mask=f < pairs, other=0.0)[None, :]
    h = tl.arange(0, BLOCK_H)
    if part == 0:
        inside_H = h < 1
        from_H = k + token * k_stride + h[:, None] * D
        to_H = kv + tl.load(slots + token) * D + h[:, None] * D
    else:
        head_H = (part - 1) * BLOCK_H + h
        inside_H = head_H < HEADS
        from_H = q + token * q_stride + head_H[:, None] * D
        to_H = turned + (token * HEADS + head_H)[:, None] * D
    inside_HF = inside_H[:, None] & (f < pairs)[None, :]
    dtype = q.dtype.element_ty
    a_HF = tl.load(from_H + first_F[None, :], mask=inside_HF, other=0.0).to(tl.float32)
    b_HF = tl.load(from_H + second_F[None, :], mask=inside_HF, other=0.0).to(tl.float32)
    tl.store(to_H + first_F[None, :], (a_HF * cos_F - b_HF * sin_F).to(dtype), mask=inside_HF)
    tl.store(to_H + second_F[None, :], (b_HF * cos_F + a_HF * sin_F).to(dtype), mask=inside_HF)
    inside_HD = inside_H[:, None] & (d < D)[None, :]
    kept_HD = tl.load(from_H + d[None, :], mask=inside_HD, other=0.0)
    tl.store(to_H + d[None, :], kept_HD, mask=inside_HD)


@triton.jit
def seen_by(token, row, query_starts, kv_lengths):
    """Return how many of its row's tokens the query at ``token`` sees."""
    behind = tl.load(query_starts + row + 1) - 1 - token
    return tl.load(kv_lengths + row) - behind


@triton.jit
def query_of_item(ITEMS, rows, query_starts, kv_lengths, counts):
    """Return what ``program_id(0)`` computes, where a query's choices are cut into ITEMS parts.

    Returns:
        The query's token, which part it is, whether the token is no padding, its row, and how many
        of the row's tokens it sees.
    """
    token = tl.program_id(0) // ITEMS
    place = tl.program_id(0) % ITEMS
    is_real = token < tl.load(counts + 1)
    row = tl.load(rows + token, mask=is_real, other=0)
    seen = seen_by(token, row, query_starts, kv_lengths).to(tl.int32)
    return token, place, is_real, row, seen


@triton.jit
def entry_lines(pages, entry_N, inside_N, PAGE: tl.constexpr, RATE: tl.constexpr):
    """Return where the entries of RATE tokens each lie: in the pages of the last of these.

    Where RATE is 1 they are tokens.
    """
    each: tl.constexpr = PAGE // RATE if PAGE >= RATE else 1  # pyright: ignore[reportAssignmentType]
    apart: tl.constexpr = 1 if PAGE >= RATE else RATE // PAGE  # pyright: ignore[reportAssignmentType]
    page_N = tl.load(pages + (entry_N // each + 1) * apart - 1, mask=inside_N, other=0)
    return page_N.to(tl.int64) * each + entry_N % each


@triton.jit
def products(
    q_HD, kv, pages, entry_N, inside_N, d, D: tl.constexpr, PAGE: tl.constexpr, RATE: tl.constexpr
):  # fmt: skip
    """Return the products of queries with the keys of entries. [H, N]"""
    line_N = entry_lines(pages, entry_N, inside_N, PAGE, RATE)
    inside_ND = inside_N[:, None] & (d < D)[None, :]
    k_ND = tl.load(kv + line_N[:, None] * D + d[None, :], mask=inside_ND, other=0.0)
    return tl.dot(q_HD, tl.trans(k_ND.to(q_HD.dtype)), input_precision="ieee")


@triton.jit
def score_tokens_kernel(
    turned,
    weights,
    kv,
    page_table,
    rows,
    query_starts,
    kv_lengths,
    counts,
    scores,
    first_token,
    weight_stride,
    page_stride,
    score_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    PAGE: tl.constexpr,
    RATE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    """Score every so many tiles of the entries of RATE tokens that query ``program_id(0)`` sees.

    Queries that see no more than K entries choose them all: they need no scores.
    """
    begin(PDL)
    line = tl.program_id(0).to(tl.int64)
    token = first_token + line
    if token >= tl.load(counts + 1):
        return
    row = tl.load(rows + token).to(tl.int64)
    seen = seen_by(token, row, query_starts, kv_lengths).to(tl.int32) // RATE
    if seen <= K:
        return
    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    inside_HD = (h < HEADS)[:, None] & (d < D)[None, :]
    at_HD = (token * HEADS + h)[:, None] * D + d[None, :]
    q_HD = tl.load(turned + at_HD, mask=inside_HD, other=0.0)
    weight_H = tl.load(weights + token * weight_stride + h, mask=h < HEADS, other=0.0)
    weight_H = weight_H.to(tl.float32)
    pages = page_table + row * page_stride
    step = tl.num_programs(1) * BLOCK_N
    for start in range(tl.program_id(1) * BLOCK_N, seen, step):
        entry_N = start + n
        score_HN = products(q_HD, kv, pages, entry_N, entry_N < seen, d, D, PAGE, RATE)
        score_N = tl.sum(tl.maximum(score_HN, 0.0) * weight_H[:, None], axis=0)
        # Of zeros, too, the choice is by position: none of them has a sign.
        score_N = tl.where(score_N == 0.0, 0.0, score_N)
        tl.store(scores + line * score_stride + entry_N, score_N, mask=entry_N < seen)


@triton.jit
def score_blocks_kernel(
    turned,
    kv,
    page_table,
    rows,
    query_starts,
    kv_lengths,
    counts,
    scores,
    first_token,
    page_stride,
    score_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    K: tl.constexpr,
    SIZE: tl.constexpr,
    LOCAL: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    """Score every so many blocks that query ``program_id(0)`` sees, for each head.

    A block's score is its best token's; the last LOCAL ones up to the query's own have the highest.
    """
    begin(PDL)
    line = tl.program_id(0).to(tl.int64)
    token = first_token + line
    if token >= tl.load(counts + 1):
        return
    row = tl.load(rows + token).to(tl.int64)
    seen = seen_by(token, row, query_starts, kv_lengths).to(tl.int32)
    blocks = (seen + SIZE - 1) // SIZE
    if blocks <= K:
        return
    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, BLOCK_D)
    inside_HD = (h < HEADS)[:, None] & (d < D)[None, :]
    at_HD = (token * HEADS + h)[:, None] * D + d[None, :]
    q_HD = tl.load(turned + at_HD, mask=inside_HD, other=0.0)
    pages = page_table + row * page_stride
    # A tile is BLOCKS blocks, each with room for a power of two of tokens.
    n = tl.arange(0, BLOCKS * BLOCK_S)
    within_N = n % BLOCK_S
    b = tl.arange(0, BLOCKS)
    step = tl.num_programs(1) * BLOCKS
    for first in range(tl.program_id(1) * BLOCKS, blocks, step):
        token_N = (first + n // BLOCK_S) * SIZE + within_N
        inside_N = (within_N < SIZE) & (token_N < seen)
        score_HN = products(q_HD, kv, pages, token_N, inside_N, d, D, PAGE, 1)
        score_HN = tl.where(inside_N[None, :], score_HN, float("-inf"))
        best_HB = tl.max(tl.reshape(score_HN, [BLOCK_H, BLOCKS, BLOCK_S]), axis=2)
        best_HB = tl.where(best_HB == 0.0, 0.0, best_HB)
        block_B = first + b
        best_HB = tl.where((block_B >= blocks - LOCAL)[None, :], float("inf"), best_HB)
        at_HB = (line * HEADS + h)[:, None] * score_stride + block_B[None, :]
        inside_HB = (h < HEADS)[:, None] & (block_B < blocks)[None, :]
        tl.store(scores + at_HB, best_HB, mask=inside_HB)
