"""Kernels that make entries of stretches of tokens, and that rotate the last features of heads.

Shapes: A tokens of a tile, D features of an entry, F of what a token adds to one (D, or 2 D where
the tokens of the entry before count, too), P pairs of neighbours, H heads, E rotated features.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin


@triton.jit
def add_tokens(
    new, waiting, pages, bias, token, start, place, first, a, d, max_D, sum_D, acc_D,
    new_stride, D: tl.constexpr, F: tl.constexpr, RATE: tl.constexpr, PAGE: tl.constexpr,
):  # fmt: skip
    """Return running maxima, sums and weighted keys with tokens ``first + a`` added.

    Tokens of the step are read from ``new``: their pages may not be written yet.
    """
    span: tl.constexpr = RATE * (F // D)
    at_A = first + a
    is_there_A = (a < span) & (at_A >= 0)
    step_A = token - (place - at_A)
    is_new_A = is_there_A & (step_A >= start)
    is_old_A = is_there_A & (step_A < start)
    # First halves of the tokens before, second halves of the entry's own.
    half_A = tl.where(a >= span - RATE, F - D, 0)
    inside_D = (d < D)[None, :]
    feature_AD = half_A[:, None] + d[None, :]
    new_AD = new + step_A.to(tl.int64)[:, None] * new_stride + feature_AD
    page_A = tl.load(pages + at_A // PAGE, mask=is_old_A, other=0).to(tl.int64)
    old_AD = waiting + (page_A * PAGE + at_A % PAGE)[:, None] * (2 * F) + feature_AD
    is_new_AD, is_old_AD = is_new_A[:, None] & inside_D, is_old_A[:, None] & inside_D
    dtype = waiting.dtype.element_ty
    key_AD = tl.load(new_AD, mask=is_new_AD, other=0.0).to(dtype).to(tl.float32)
    key_AD += tl.load(old_AD, mask=is_old_AD, other=0.0).to(tl.float32)
    gate_AD = tl.load(new_AD + F, mask=is_new_AD, other=0.0).to(dtype).to(tl.float32)
    gate_AD += tl.load(old_AD + F, mask=is_old_AD, other=0.0).to(tl.float32)
    bias_AD = bias + (a % RATE)[:, None] * F + feature_AD
    gate_AD += tl.load(bias_AD, mask=is_there_A[:, None] & inside_D, other=0.0)
    gate_AD = tl.where(is_there_A[:, None], gate_AD, float("-inf"))
    new_max_D = tl.maximum(max_D, tl.max(gate_AD, axis=0))
    weight_AD = tl.exp(gate_AD - new_max_D[None, :])
    shrink_D = tl.exp(max_D - new_max_D)
    sum_D = sum_D * shrink_D + tl.sum(weight_AD, axis=0)
    acc_D = acc_D * shrink_D + tl.sum(weight_AD * key_AD, axis=0)
    return new_max_D, sum_D, acc_D


@triton.jit
def compress_kernel(
    new,
    bias,
    norm,
    cos_sin,
    waiting,
    waiting_table,
    waiting_slots,
    entries,
    slots,
    positions,
    rows,
    query_starts,
    counts,
    new_stride,
    table_stride,
    eps,
    D: tl.constexpr,
    F: tl.constexpr,
    E: tl.constexpr,
    RATE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PDL: tl.constexpr,
):
    """Store keys and gates of token ``program_id(0)``, and make the entry that it ends, if any."""
    begin(PDL)
    token = tl.program_id(0)
    if token >= tl.load(counts + 1):
        return
    g = tl.arange(0, BLOCK_G)
    line = waiting + tl.load(waiting_slots + token) * (2 * F)
    new_G = tl.load(new + token.to(tl.int64) * new_stride + g, mask=g < 2 * F)
    tl.store(line + g, new_G.to(waiting.dtype.element_ty), mask=g < 2 * F)
    place = tl.load(positions + token).to(tl.int32)
    if (place + 1) % RATE != 0:
        return
    row = tl.load(rows + token).to(tl.int64)
    start = tl.load(query_starts + row)
    pages = waiting_table + row * table_stride
    span: tl.constexpr = RATE * (F // D)
    d = tl.arange(0, BLOCK_D)
    # Finite, so that differences of it are numbers where a tile has no token.
    max_D = tl.full((BLOCK_D,), -1.0e38, tl.float32)
    sum_D = tl.zeros((BLOCK_D,), tl.float32)
    acc_D = tl.zeros((BLOCK_D,), tl.float32)
    for done in range(0, span, BLOCK_A):
        max_D, sum_D, acc_D = add_tokens(
            new, waiting, pages, bias, token, start, place, place + 1 - span,
            done + tl.arange(0, BLOCK_A), d, max_D, sum_D, acc_D, new_stride, D, F, RATE, PAGE,
        )  # fmt: skip
    made_D = tl.where(d < D, acc_D / sum_D, 0.0)
    inverse = tl.rsqrt(tl.sum(made_D * made_D, axis=0) / D + eps)
    made_D = made_D * inverse * tl.load(norm + d, mask=d < D, other=0.0).to(tl.float32)
    even_P, odd_P = tl.split(tl.reshape(made_D, [BLOCK_D // 2, 2]))
    p = tl.arange(0, BLOCK_D // 2)
    pair_P = p - (D - E) // 2
    is_turned_P = (pair_P >= 0) & (p < D // 2)
    angle = cos_sin + (place + 1 - RATE).to(tl.int64) * E
    cos_P = tl.load(angle + pair_P, mask=is_turned_P, other=1.0)
    sin_P = tl.load(angle + E // 2 + pair_P, mask=is_turned_P, other=0.0)
    made_P2 = tl.join(even_P * cos_P - odd_P * sin_P, odd_P * cos_P + even_P * sin_P)
    made_D = tl.reshape(made_P2, [BLOCK_D])
    # Rows that are done have the null page's slots.
    slot = tl.load(slots + token)
    each: tl.constexpr = PAGE // RATE if PAGE >= RATE else 1
    to = entries + (slot // PAGE * each + slot % PAGE // RATE) * D + d
    tl.store(to, made_D.to(entries.dtype.element_ty), mask=d < D)


@triton.jit
def turn_last_kernel(
    x,
    positions,
    cos_sin,
    out,
    token_stride,
    head_stride,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
    IS_INVERSE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rotate the last E features of BLOCK_H heads of token ``program_id(0)``, or back."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    head_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    f = tl.arange(0, BLOCK_F)
    d = tl.arange(0, BLOCK_D)
    pairs: tl.constexpr = E // 2
    angle = cos_sin + tl.load(positions + token) * E
    cos_F = tl.load(angle + f, mask=f < pairs, other=0.0)[None, :]
    sin_F = tl.load(angle + pairs + f, mask=f < pairs, other=0.0)[None, :]
    if IS_INVERSE:
        sin_F = -sin_F
    from_H1 = x + token * token_stride + (head_H * head_stride)[:, None]
    to_H1 = out + (token * HEADS + head_H)[:, None] * D
    first_F = (D - E + 2 * f)[None, :]
    inside_HF = (head_H < HEADS)[:, None] & (f < pairs)[None, :]
    a_HF = tl.load(from_H1 + first_F, mask=inside_HF, other=0.0).to(tl.float32)
    b_HF = tl.load(from_H1 + first_F + 1, mask=inside_HF, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    tl.store(to_H1 + first_F, (a_HF * cos_F - b_HF * sin_F).to(dtype), mask=inside_HF)
    tl.store(to_H1 + first_F + 1, (b_HF * cos_F + a_HF * sin_F).to(dtype), mask=inside_HF)
    if D > E:
        inside_HD = (head_H < HEADS)[:, None] & (d < D - E)[None, :]
        kept_HD = tl.load(from_H1 + d[None, :], mask=inside_HD, other=0.0)
        tl.store(to_H1 + d[None, :], kept_HD, mask=inside_HD)
