"""Keys and values into their pages, alone or fused with head norms and rotation."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.attention.narrow import line_of
from headstock_triton.norm import weighted
from headstock_triton.overlap import begin


@triton.jit
def write_kernel(
    k,
    v,
    kv,
    slots,
    k_stride,
    v_stride,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Store keys and values [T, K, D] of token ``program_id(0)``; heads and D contiguous."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    head_K = tl.arange(0, BLOCK_K)
    columns_D = tl.arange(0, BLOCK_D)
    inside_KD = (head_K < KV_HEADS)[:, None] & (columns_D < D)[None, :]
    from_KD = head_K[:, None] * D + columns_D[None, :]
    line_K = line_of(slot // PAGE, head_K, slot % PAGE, KV_HEADS, PAGE)
    to_KD = kv + line_K[:, None] * D + columns_D[None, :]
    k_KD = tl.load(k + token * k_stride + from_KD, mask=inside_KD, other=0.0)
    v_KD = tl.load(v + token * v_stride + from_KD, mask=inside_KD, other=0.0)
    tl.store(to_KD, k_KD, mask=inside_KD)
    tl.store(to_KD + KV_HEADS * PAGE * D, v_KD, mask=inside_KD)


@triton.jit
def read_kernel(
    kv,
    slots,
    k,
    v,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PDL: tl.constexpr,
):
    """Gather keys and values of slot ``program_id(0)`` into k and v [S, K, D]."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    head_K = tl.arange(0, BLOCK_K)
    columns_D = tl.arange(0, BLOCK_D)
    inside_KD = (head_K < KV_HEADS)[:, None] & (columns_D < D)[None, :]
    line_K = line_of(slot // PAGE, head_K, slot % PAGE, KV_HEADS, PAGE)
    from_KD = kv + line_K[:, None] * D + columns_D[None, :]
    to_KD = token * KV_HEADS * D + head_K[:, None] * D + columns_D[None, :]
    tl.store(k + to_KD, tl.load(from_KD, mask=inside_KD, other=0.0), mask=inside_KD)
    from_KD += KV_HEADS * PAGE * D
    tl.store(v + to_KD, tl.load(from_KD, mask=inside_KD, other=0.0), mask=inside_KD)


@triton.jit
def turned(first_HF, second_HF, angle, f, PAIRS: tl.constexpr):
    """Return both features of the pairs of heads, rotated by the angles that lie at ``angle``."""
    dtype: tl.constexpr = first_HF.dtype
    cos_F = tl.load(angle + f, mask=f < PAIRS, other=0.0)
    sin_F = tl.load(angle + PAIRS + f, mask=f < PAIRS, other=0.0)
    first32_HF = first_HF.to(tl.float32)
    second32_HF = second_HF.to(tl.float32)
    turned_HF = first32_HF * cos_F[None, :] - second32_HF * sin_F[None, :]
    second_HF = (second32_HF * cos_F[None, :] + first32_HF * sin_F[None, :]).to(dtype)
    return turned_HF.to(dtype), second_HF


@triton.jit
def rotate_and_write_kernel(
    qkv,
    cos_sin,
    q_norm,
    k_norm,
    positions,
    slots,
    kv,
    q_out,
    qkv_stride,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    ROTATED: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    HAS_V_NORM: tl.constexpr,
    IS_NORMED_LAST: tl.constexpr,
    TAKES_KEYS: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Prepare BLOCK_H heads of token ``program_id(0)``: of q, then k, then v by program_id(1).

    With TAKES_KEYS there are no v to read: they are k. With KV_HEADS = 0 there is q alone, and
    ``slots`` and ``kv`` are not touched.

    A head is held as the two halves of its rotated pairs (F each) and what is not rotated; with
    ROTATED = 0 the halves are the halves of D and no angle is read.
    """
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    q_parts: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    kv_parts: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    is_q = part < q_parts
    is_v = part >= q_parts + kv_parts
    is_k = (part >= q_parts) & (part < q_parts + kv_parts)
    base = tl.where(is_q, 0, tl.where(is_v, q_parts + kv_parts, q_parts))
    head_H = (part - base) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside_H = head_H < tl.where(is_q, HEADS, KV_HEADS)
    values: tl.constexpr = HEADS if TAKES_KEYS else HEADS + KV_HEADS
    source = tl.where(is_q, 0, tl.where(is_v, values, HEADS))

    pairs: tl.constexpr = (ROTATED if ROTATED > 0 else D) // 2
    f = tl.arange(0, BLOCK_F)
    inside_F = f < pairs
    if IS_INTERLEAVED:
        first_F = 2 * f
        second_F = 2 * f + 1
    else:
        first_F = f
        second_F = f + pairs
    inside_HF = inside_H[:, None] & inside_F[None, :]
    line = qkv + token * qkv_stride + (source + head_H)[:, None] * D
    first_HF = tl.load(line + first_F[None, :], mask=inside_HF, other=0.0)
    second_HF = tl.load(line + second_F[None, :], mask=inside_HF, other=0.0)
    dtype: tl.constexpr = first_HF.dtype
    if BLOCK_REST > 0:
        rest_R = 2 * pairs + tl.arange(0, BLOCK_REST)
        inside_HR = inside_H[:, None] & (rest_R < D)[None, :]
        rest_HR = tl.load(line + rest_R[None, :], mask=inside_HR, other=0.0)

    if ROTATED > 0 and IS_NORMED_LAST:  # noqa: SIM102 - this is known when the kernel is compiled
        if not is_v:
            angle = cos_sin + tl.load(positions + token) * ROTATED
            first_HF, second_HF = turned(first_HF, second_HF, angle, f, pairs)
    if HAS_Q_NORM or HAS_K_NORM or HAS_V_NORM:
        is_normed = (is_q & HAS_Q_NORM) | (is_v & HAS_V_NORM) | (is_k & HAS_K_NORM)
        if is_normed:
            first32_HF = first_HF.to(tl.float32)
            second32_HF = second_HF.to(tl.float32)
            square_H = tl.sum(first32_HF * first32_HF + second32_HF * second32_HF, axis=1)
            if BLOCK_REST > 0:
                rest32_HR = rest_HR.to(tl.float32)
                square_H += tl.sum(rest32_HR * rest32_HR, axis=1)
            inverse_H = tl.rsqrt(square_H / D + eps)
            first32_HF *= inverse_H[:, None]
            second32_HF *= inverse_H[:, None]
            if is_v:
                first_HF = first32_HF.to(dtype)
                second_HF = second32_HF.to(dtype)
                if BLOCK_REST > 0:
                    rest_HR = (rest32_HR * inverse_H[:, None]).to(dtype)
            else:
                norm = k_norm
                if is_q:
                    norm = q_norm
                w_first_F = tl.load(norm + first_F, mask=inside_F, other=0.0)
                w_second_F = tl.load(norm + second_F, mask=inside_F, other=0.0)
                first_HF = weighted(first32_HF, w_first_F[None, :], q_out)
                second_HF = weighted(second32_HF, w_second_F[None, :], q_out)
                if BLOCK_REST > 0:
                    w_rest_R = tl.load(norm + rest_R, mask=rest_R < D, other=0.0)
                    rest_HR = weighted(rest32_HR * inverse_H[:, None], w_rest_R[None, :], q_out)
    if ROTATED > 0 and not IS_NORMED_LAST:  # noqa: SIM102 - known when the kernel is compiled
        if not is_v:
            angle = cos_sin + tl.load(positions + token) * ROTATED
            first_HF, second_HF = turned(first_HF, second_HF, angle, f, pairs)

    if is_q:
        to_H = q_out + (token * HEADS + head_H) * D
        tl.store(to_H[:, None] + first_F[None, :], first_HF, mask=inside_HF)
        tl.store(to_H[:, None] + second_F[None, :], second_HF, mask=inside_HF)
        if BLOCK_REST > 0:
            tl.store(to_H[:, None] + rest_R[None, :], rest_HR, mask=inside_HR)
    else:
        slot = tl.load(slots + token)
        line_H = line_of(slot // PAGE, head_H, slot % PAGE, KV_HEADS, PAGE)
        line_H += tl.where(is_v, KV_HEADS * PAGE, 0)
        page_H = kv + line_H * D
        tl.store(page_H[:, None] + first_F[None, :], first_HF, mask=inside_HF)
        tl.store(page_H[:, None] + second_F[None, :], second_HF, mask=inside_HF)
        if BLOCK_REST > 0:
            tl.store(page_H[:, None] + rest_R[None, :], rest_HR, mask=inside_HR)
