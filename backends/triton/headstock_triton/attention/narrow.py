"""Keys and values in 8 bits with a scale a token and head: whole numbers, or codes of e4m3.

A page has for each head its tokens' keys [tokens, D], their scales (float32), and then likewise its
values: what is before the scales is as other pages have it. Codes are taken apart by integers, so
that every device reads them, whatever it has of FP8.

Shapes: N tokens, K key/value heads, D features of a head.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import torch
import triton
import triton.language as tl

from headstock.ops.attention import NARROW_PAGES
from headstock_triton.overlap import begin

KINDS = {torch.int8: 1, torch.float8_e4m3fn: 2}
"""What kernels know the dtypes of pages by; others are 0."""
PAGE_DTYPES = frozenset(NARROW_PAGES)
FEATURES = frozenset[str]().union(*NARROW_PAGES.values())


@triton.jit
def line_of(page, head, offset, KV_HEADS: tl.constexpr, PAGE: tl.constexpr):
    """Return the line of a key; its value is ``KV_HEADS * PAGE`` lines further."""
    return (page.to(tl.int64) * (2 * KV_HEADS) + head) * PAGE + offset


@triton.jit
def place_of(line_N, PAGE: tl.constexpr, D: tl.constexpr):
    """Return where a line's numbers begin, in bytes, and its scale, in float32."""
    block_N = line_N // PAGE * (PAGE * (D + 4))
    within_N = line_N % PAGE
    return block_N + within_N * D, (block_N + PAGE * D) // 4 + within_N


@triton.jit
def widen(stored, KIND: tl.constexpr):
    """Return the numbers that bytes stand for, without their scales. float32."""
    if KIND == 1:
        wide = stored.to(tl.float32)
    else:
        code = stored.to(tl.int32)
        magnitude = code & 127
        normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
        # Without an exponent they are multiples of 2^-9.
        value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
        wide = tl.where(code > 127, -value, value)
    return wide


@triton.jit
def narrow(x, KIND: tl.constexpr):
    """Return numbers up to the kind's largest in 8 bits, to the nearest, ties to even."""
    if KIND == 1:
        found = ((x + 12582912.0) - 12582912.0).to(tl.int8)
    else:
        bits = x.to(tl.int32, bitcast=True)
        magnitude = bits & 0x7FFFFFFF
        value = magnitude.to(tl.float32, bitcast=True)
        normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
        small = ((value * 512.0 + 12582912.0) - 12582912.0).to(tl.int32)
        code = tl.where(value < 0.015625, small, normal)
        found = (tl.where(bits < 0, code + 128, code) & 255).to(tl.uint8)
    return found


@triton.jit
def store_narrow(x_KD, kv, scales, line_K, inside_KD, inside_K, columns_D,
                 PAGE: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr):  # fmt: skip
    """Store a token's heads; what is not finite makes the scale not a number."""
    largest: tl.constexpr = 127.0 if KIND == 1 else 448.0  # pyright: ignore[reportAssignmentType]
    x_KD = x_KD.to(tl.float32)
    poison_K = tl.sum(x_KD * 0.0, axis=1)
    scale_K = tl.max(tl.abs(x_KD), axis=1) / largest
    unit_K = tl.where(scale_K > 0, scale_K, 1.0)
    at_K, scale_at_K = place_of(line_K, PAGE, D)
    codes_KD = narrow(tl.div_rn(x_KD, unit_K[:, None]), KIND)
    tl.store(kv + at_K[:, None] + columns_D[None, :], codes_KD, mask=inside_KD)
    tl.store(scales + scale_at_K, scale_K + poison_K, mask=inside_K)


@triton.jit
def write_narrow_kernel(
    k,
    v,
    kv,
    scales,
    slots,
    k_stride,
    v_stride,
    KV_HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr,
    PDL: tl.constexpr,
):
    """Store keys and values [T, K, D] of token ``program_id(0)``; heads and D contiguous."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    head_K = tl.arange(0, BLOCK_K)
    columns_D = tl.arange(0, BLOCK_D)
    inside_K = head_K < KV_HEADS
    inside_KD = inside_K[:, None] & (columns_D < D)[None, :]
    from_KD = head_K[:, None] * D + columns_D[None, :]
    line_K = line_of(slot // PAGE, head_K, slot % PAGE, KV_HEADS, PAGE)
    k_KD = tl.load(k + token * k_stride + from_KD, mask=inside_KD, other=0.0)
    v_KD = tl.load(v + token * v_stride + from_KD, mask=inside_KD, other=0.0)
    store_narrow(k_KD, kv, scales, line_K, inside_KD, inside_K, columns_D, PAGE, D, NARROW)
    line_K += KV_HEADS * PAGE
    store_narrow(v_KD, kv, scales, line_K, inside_KD, inside_K, columns_D, PAGE, D, NARROW)
