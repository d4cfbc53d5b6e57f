"""Latents and rotated keys into their pages, with the norm and the rotation or as they are."""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl

from headstock_triton.overlap import begin


@triton.jit
def write_latents(
    latents,
    keys,
    kv,
    slots,
    latent_stride,
    key_stride,
    C: tl.constexpr,
    E: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PDL: tl.constexpr,
):
    """Store the latent and the key of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    line = kv + tl.load(slots + token) * (C + E)
    c = tl.arange(0, BLOCK_C)
    e = tl.arange(0, BLOCK_E)
    tl.store(line + c, tl.load(latents + token * latent_stride + c, mask=c < C), mask=c < C)
    tl.store(line + C + e, tl.load(keys + token * key_stride + e, mask=e < E), mask=e < E)


@triton.jit
def prepare_latents(
    q,
    new,
    cos_sin,
    norm,
    positions,
    slots,
    kv,
    new_stride,
    eps,
    HEADS: tl.constexpr,
    KEY: tl.constexpr,
    C: tl.constexpr,
    E: tl.constexpr,
    IS_ROTATED: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_F: tl.constexpr,
    PDL: tl.constexpr,
):
    """Prepare token ``program_id(0)``: what is cached of it, or BLOCK_H heads of its query."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    pairs: tl.constexpr = E // 2
    f = tl.arange(0, BLOCK_F)
    inside_F = f < pairs
    if IS_INTERLEAVED:
        first_F = 2 * f
        second_F = 2 * f + 1
    else:
        first_F = f
        second_F = f + pairs
    if IS_ROTATED:
        angle = cos_sin + tl.load(positions + token) * E
        cos_F = tl.load(angle + f, mask=inside_F, other=0.0)
        sin_F = tl.load(angle + pairs + f, mask=inside_F, other=0.0)
    if part == 0:
        line = kv + tl.load(slots + token) * (C + E)
        from_new = new + token * new_stride
        c = tl.arange(0, BLOCK_C)
        latent_C = tl.load(from_new + c, mask=c < C, other=0.0)
        dtype: tl.constexpr = latent_C.dtype
        latent32_C = latent_C.to(tl.float32)
        inverse = tl.rsqrt(tl.sum(latent32_C * latent32_C, axis=0) / C + eps)
        weight_C = tl.load(norm + c, mask=c < C, other=0.0)
        tl.store(line + c, (latent32_C * inverse).to(dtype) * weight_C, mask=c < C)
        k_first_F = tl.load(from_new + C + first_F, mask=inside_F, other=0.0)
        k_second_F = tl.load(from_new + C + second_F, mask=inside_F, other=0.0)
        if IS_ROTATED:
            turned_F = k_first_F.to(tl.float32) * cos_F - k_second_F.to(tl.float32) * sin_F
            other_F = k_second_F.to(tl.float32) * cos_F + k_first_F.to(tl.float32) * sin_F
            k_first_F = turned_F.to(dtype)
            k_second_F = other_F.to(dtype)
        tl.store(line + C + first_F, k_first_F, mask=inside_F)
        tl.store(line + C + second_F, k_second_F, mask=inside_F)
    elif IS_ROTATED:
        head_H = (part - 1) * BLOCK_H + tl.arange(0, BLOCK_H)
        inside_HF = (head_H < HEADS)[:, None] & inside_F[None, :]
        at_H1 = q + ((token * HEADS + head_H) * (KEY + E) + KEY)[:, None]
        q_first_HF = tl.load(at_H1 + first_F[None, :], mask=inside_HF, other=0.0).to(tl.float32)
        q_second_HF = tl.load(at_H1 + second_F[None, :], mask=inside_HF, other=0.0).to(tl.float32)
        turned_HF = q_first_HF * cos_F[None, :] - q_second_HF * sin_F[None, :]
        other_HF = q_second_HF * cos_F[None, :] + q_first_HF * sin_F[None, :]
        tl.store(at_H1 + first_F[None, :], turned_HF.to(q.dtype.element_ty), mask=inside_HF)
        tl.store(at_H1 + second_F[None, :], other_HF.to(q.dtype.element_ty), mask=inside_HF)
