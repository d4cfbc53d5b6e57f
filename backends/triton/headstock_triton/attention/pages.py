"""Where tokens lie in the pages, and how a block of queries scans them.

Shapes: M rows of a query block (tokens x heads that share a key/value head), N tokens of a tile,
D head size. A *line* is one token's D values of one head; the buffer is an array of lines.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.attention.narrow import line_of, place_of, widen

TAG = "pages-2htd"
"""The layout's tag: a page is [2 (keys, values), heads, tokens, D]."""
NARROW_TAG = f"{TAG}-{{}}"
"""Likewise in 8 bits of a kind, the tokens' scales behind each head's keys and values."""


@triton.jit
def with_sinks(max_M, sum_M, sink_M):
    """Count each row's sink in its softmax; it has no value. Logits are in base 2.

    Returns:
        What multiplies the weighted values, and the sum of weights.
    """
    top_M = tl.maximum(max_M, sink_M)
    shrink_M = tl.exp2(max_M - top_M)
    return shrink_M, sum_M * shrink_M + tl.exp2(sink_M - top_M)


@triton.jit
def first_seen(place, WINDOW: tl.constexpr):
    """Return the first token that the token at ``place`` sees; below 0: all before it.

    WINDOW is how many it sees, itself included; negated, how many a chunk has whose first it sees.
    """
    return place - WINDOW + 1 if WINDOW > 0 else place // -WINDOW * -WINDOW


@triton.jit
def scan(
    q_MD,
    max_M,
    sum_M,
    acc_MD,
    kv,
    tiles,
    pages,
    head,
    first,
    last,
    low,
    limit_M,
    scale,
    to_cap,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    IS_MASKED: tl.constexpr,
    WINDOW: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    TMA: tl.constexpr,
    STAGES: tl.constexpr,
    NARROW: tl.constexpr,
):
    """Fold tokens [first, last) into the running softmax of a query block.

    ``first`` is a multiple of BLOCK_N, and of PAGE or within one page. With ``IS_MASKED`` row m
    sees tokens up to ``limit_M[m]`` and ``last`` may be anything; without, every row sees every
    token and ``last - first`` is a multiple of BLOCK_N. ``scale`` includes log2(e).

    With a WINDOW, masked rows see tokens from :func:`first_seen` of their limit on, and none before
    ``low`` is read: its page may be another's by now. With ``IS_CAPPED`` products are multiplied by
    ``to_cap`` and bounded by 1, and ``scale`` includes the cap. With NARROW pages are of 8 bits,
    and ``tiles`` is where their scales are, as float32.

    Returns:
        The running maximum (base 2), sum and weighted values.
    """
    within_N = tl.arange(0, BLOCK_N)
    columns_D = tl.arange(0, BLOCK_D)
    # A tile's page is looked up one tile ahead: the copies can then be queued deep, since their
    # addresses do not wait for a load of their own iteration.
    if PAGE >= BLOCK_N:
        page = tl.load(pages + first // PAGE, mask=first < last, other=0)
    else:
        page = tl.load(pages + (first + within_N) // PAGE, mask=first + within_N < last, other=0)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        tokens_N = start + within_N
        if PAGE >= BLOCK_N:
            line = line_of(page, head, start % PAGE, KV_HEADS, PAGE)
            lines_N = line + within_N
            ahead = start + BLOCK_N
        else:
            lines_N = line_of(page, head, tokens_N % PAGE, KV_HEADS, PAGE)
            ahead = tokens_N + BLOCK_N
        page = tl.load(pages + ahead // PAGE, mask=ahead < last, other=0)
        if TMA:
            k_ND = tiles.load([line.to(tl.int32), 0])
        else:
            offset_N = lines_N * D
            if NARROW > 0:
                offset_N, scale_at_N = place_of(lines_N, PAGE, D)
            at_ND = kv + offset_N[:, None] + columns_D[None, :]
            if IS_MASKED:
                inside_N = tokens_N < last
                if WINDOW != 0:
                    inside_N = inside_N & (tokens_N >= low)
                inside_ND = inside_N[:, None] & (columns_D < D)[None, :]
                k_ND = tl.load(at_ND, mask=inside_ND, other=0.0)
            elif BLOCK_D == D:
                k_ND = tl.load(at_ND)
            else:
                k_ND = tl.load(at_ND, mask=(columns_D < D)[None, :], other=0.0)
        # Pages may be narrower than activations.
        if NARROW > 0:
            k_ND = widen(k_ND, NARROW)
        k_ND = k_ND.to(q_MD.dtype)
        scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee")
        if NARROW > 0:
            at_N = tiles + scale_at_N
            k_scale_N = tl.load(at_N, mask=inside_N, other=0.0) if IS_MASKED else tl.load(at_N)
            scores_MN = scores_MN * k_scale_N[None, :]
        if IS_CAPPED:
            scores_MN = 2 * tl.sigmoid(scores_MN * (2 * to_cap)) - 1  # the hyperbolic tangent
        if IS_MASKED:
            is_seen_MN = (tokens_N[None, :] <= limit_M[:, None]) & (tokens_N < last)[None, :]
            if WINDOW != 0:
                is_seen_MN = is_seen_MN & (
                    tokens_N[None, :] >= first_seen(limit_M, WINDOW)[:, None]
                )
                is_seen_MN = is_seen_MN & (tokens_N >= low)[None, :]
            scores_MN = tl.where(is_seen_MN, scores_MN, float("-inf"))
        # The scale joins the subtraction: one multiply-add a score.
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1) * scale)
        if WINDOW != 0:
            # Finite where nothing is seen yet, so that differences of it are numbers.
            new_max_M = tl.maximum(new_max_M, -1.0e38)
        weights_MN = tl.exp2(scores_MN * scale - new_max_M[:, None])
        shrink_M = tl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
        acc_MD = acc_MD * shrink_M[:, None]
        if TMA:
            v_ND = tiles.load([(line + KV_HEADS * PAGE).to(tl.int32), 0])
            if IS_MASKED:
                inside_N = tokens_N < last
                if WINDOW != 0:
                    inside_N = inside_N & (tokens_N >= low)
                v_ND = tl.where(inside_N[:, None], v_ND, 0.0)
        else:
            at_ND += KV_HEADS * PAGE * (D + 4 if NARROW > 0 else D)
            if IS_MASKED:
                v_ND = tl.load(at_ND, mask=inside_ND, other=0.0)
            elif BLOCK_D == D:
                v_ND = tl.load(at_ND)
            else:
                v_ND = tl.load(at_ND, mask=(columns_D < D)[None, :], other=0.0)
        if NARROW > 0:
            v_ND = widen(v_ND, NARROW)
            at_N += KV_HEADS * PAGE * (D + 4) // 4
            v_scale_N = tl.load(at_N, mask=inside_N, other=0.0) if IS_MASKED else tl.load(at_N)
            weights_MN = weights_MN * v_scale_N[None, :]
        v_ND = v_ND.to(q_MD.dtype)
        acc_MD = tl.dot(weights_MN.to(q_MD.dtype), v_ND, acc_MD, input_precision="ieee")
        max_M = new_max_M
    return max_M, sum_M, acc_MD
