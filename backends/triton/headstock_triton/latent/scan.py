"""How a block of absorbed queries scans the latents of its row's pages.

Shapes: M rows of a block (queries x heads), N tokens of a tile, C features of a latent, E of the
rotated key, X = C + E. A tile of latents is read once, and is both keys and values.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

TAG = "pages-latent-tx-triton"
"""The layout's tag: a page is [tokens, X], the latent first."""


@triton.jit
def load_queries(
    absorbed, q, line_M, inside_M, N_, C, E, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr
):
    """Return absorbed features [M, C] and rotated ones [M, E] of (token, head) lines."""
    c = tl.arange(0, BLOCK_C)
    e = tl.arange(0, BLOCK_E)
    latent_MC = tl.load(
        absorbed + line_M[:, None] * C + c[None, :],
        mask=inside_M[:, None] & (c < C)[None, :],
        other=0.0,
    )
    turned_ME = tl.load(
        q + line_M[:, None] * (N_ + E) + N_ + e[None, :],
        mask=inside_M[:, None] & (e < E)[None, :],
        other=0.0,
    )
    return latent_MC, turned_ME


@triton.jit
def scan_latents(
    q_MC,
    q_ME,
    kv,
    pages,
    first,
    last,
    limit_M,
    scale,
    PAGE: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Attend to tokens [first, last), of which row m sees those up to ``limit_M[m]``.

    ``first`` is a multiple of BLOCK_N. ``scale`` includes log2(e).

    Returns:
        The maximum (base 2), the sum and the weighted latents. [M], [M], [M, C]
    """
    within_N = tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_C)
    e = tl.arange(0, BLOCK_E)
    max_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MC = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    # A tile's page is looked up one tile ahead: copies do not wait for a load of their own turn.
    if PAGE >= BLOCK_N:
        page = tl.load(pages + first // PAGE, mask=first < last, other=0)
    else:
        page = tl.load(pages + (first + within_N) // PAGE, mask=first + within_N < last, other=0)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        tokens_N = start + within_N
        if PAGE >= BLOCK_N:
            line_N = page.to(tl.int64) * PAGE + start % PAGE + within_N
            ahead = start + BLOCK_N
        else:
            line_N = page.to(tl.int64) * PAGE + tokens_N % PAGE
            ahead = tokens_N + BLOCK_N
        page = tl.load(pages + ahead // PAGE, mask=ahead < last, other=0)
        is_there_N1 = (tokens_N < last)[:, None]
        at_N1 = kv + line_N[:, None] * (C + E)
        k_NC = tl.load(at_N1 + c[None, :], mask=is_there_N1 & (c < C)[None, :], other=0.0)
        k_NE = tl.load(at_N1 + C + e[None, :], mask=is_there_N1 & (e < E)[None, :], other=0.0)
        k_NC = k_NC.to(q_MC.dtype)
        scores_MN = tl.dot(q_ME, tl.trans(k_NE.to(q_MC.dtype)), input_precision="ieee")
        scores_MN = tl.dot(q_MC, tl.trans(k_NC), scores_MN, input_precision="ieee")
        is_seen_MN = (tokens_N[None, :] <= limit_M[:, None]) & (tokens_N < last)[None, :]
        scores_MN = tl.where(is_seen_MN, scores_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, axis=1) * scale)
        weights_MN = tl.exp2(scores_MN * scale - new_max_M[:, None])
        shrink_M = tl.exp2(max_M - new_max_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, axis=1)
        acc_MC = acc_MC * shrink_M[:, None]
        acc_MC = tl.dot(weights_MN.to(q_MC.dtype), k_NC, acc_MC, input_precision="ieee")
        max_M = new_max_M
    return max_M, sum_M, acc_MC
