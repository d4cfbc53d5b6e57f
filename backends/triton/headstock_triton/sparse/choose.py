"""The highest of a line of scores, found digit by digit, without sorting it."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin
from headstock_triton.sampling.filters import order_of
from headstock_triton.sparse.scores import seen_by

DIGITS = tl.constexpr(256)
"""Values of 8 bits of a score."""


@triton.jit
def digits_of(x):
    """Return an uint32 that is ordered as the float is."""
    return order_of(x).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def kth_highest(scores, count, need, BLOCK: tl.constexpr):
    """Find the ``need``-th highest of ``count`` scores, as :func:`digits_of` has it.

    Returns:
        It, and how many of the equals of it are among the ``need`` highest.
    """
    n = tl.arange(0, BLOCK)
    digit = tl.arange(0, DIGITS)
    prefix = tl.full((), 0, tl.uint32)
    for place in tl.static_range(4):  # pyright: ignore[reportGeneralTypeIssues]
        counts = tl.zeros((DIGITS,), tl.int32)
        for start in range(0, count, BLOCK):
            inside = start + n < count
            key = digits_of(tl.load(scores + start + n, mask=inside, other=0.0))
            if place > 0:
                inside = inside & ((key >> (32 - 8 * place)) == (prefix >> (32 - 8 * place)))
            value = ((key >> (24 - 8 * place)) & 255).to(tl.int32)
            counts += tl.histogram(value, DIGITS, mask=inside)
        over = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0)
        found = tl.sum((over >= need).to(tl.int32), axis=0)
        need -= tl.sum(tl.where(digit == found, over, 0), axis=0)
        prefix = prefix | (found.to(tl.uint32) << (24 - 8 * place))
    return prefix, need


@triton.jit
def choose_kernel(
    scores,
    rows,
    query_starts,
    kv_lengths,
    counts,
    chosen,
    first_token,
    score_stride,
    WIDTH,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    K: tl.constexpr,
    NONE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Write what head ``program_id(1)`` of query ``program_id(0)`` reads, by rising position.

    What is chosen are blocks of SIZE tokens. Of equal scores the first are taken.

    Args:
        scores: Of the blocks, where there are more than K. float32. [lines, HEADS, blocks]
        rows: Of tokens.
        query_starts: As in the step batch.
        kv_lengths: Likewise.
        counts: Likewise.
        chosen: [T, HEADS, WIDTH]
        first_token: The token of the first line.
        score_stride: From one head's scores to the next's.
        WIDTH: K, or less where no query of the step sees so many blocks.
        HEADS: Each chooses for itself.
        SIZE: Tokens of a block.
        IS_WHOLE: Whether blocks are seen from their last token on, else from their first.
        K: Blocks to choose.
        NONE: What is written where there are fewer.
        BLOCK_K: K or more, a power of two.
        BLOCK: Scores that are looked at together.
        PDL: See :mod:`headstock_triton.overlap`.
    """
    begin(PDL)
    line = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    token = first_token + line
    chosen += (token * HEADS + head) * WIDTH
    k = tl.arange(0, BLOCK_K)
    if token >= tl.load(counts + 1):
        tl.store(chosen + k, tl.full((BLOCK_K,), NONE, tl.int32), mask=k < WIDTH)
        return
    seen = seen_by(token, tl.load(rows + token), query_starts, kv_lengths).to(tl.int32)
    blocks = seen // SIZE if IS_WHOLE else (seen + SIZE - 1) // SIZE
    if blocks <= K:
        tl.store(chosen + k, tl.where(k < blocks, k, NONE), mask=k < WIDTH)
        return
    scores += (line * HEADS + head) * score_stride
    need = tl.full((), K, tl.int32)
    border, num_equals = kth_highest(scores, blocks, need, BLOCK)
    n = tl.arange(0, BLOCK)
    taken = 0
    equals = 0
    for start in range(0, blocks, BLOCK):
        inside = start + n < blocks
        key = digits_of(tl.load(scores + start + n, mask=inside, other=0.0))
        is_equal = inside & (key == border)
        rank = equals + tl.cumsum(is_equal.to(tl.int32), axis=0)
        takes = (inside & (key > border)) | (is_equal & (rank <= num_equals))
        at = taken + tl.cumsum(takes.to(tl.int32), axis=0) - 1
        tl.store(chosen + at, start + n, mask=takes)
        taken += tl.sum(takes.to(tl.int32), axis=0)
        equals += tl.sum(is_equal.to(tl.int32), axis=0)
