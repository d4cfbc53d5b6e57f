"""Stands in for AITER: signatures of its release of August 2026, computed by PyTorch.

It refuses what that asserts, and what its kernels take for granted of their arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(
    input: Tensor, weight: Tensor, epsilon: float, use_model_sensitive_rmsnorm: int = 0
) -> Tensor:
    assert input.is_contiguous()
    assert input.dtype == weight.dtype
    wide = input.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * scale * weight.float()).to(input.dtype)


def rmsnorm2d_fwd_with_add(
    out: Tensor,
    input: Tensor,
    residual_in: Tensor,
    residual_out: Tensor,
    weight: Tensor,
    epsilon: float,
    gemma_norm: bool = False,
    use_model_sensitive_rmsnorm: int = 0,
) -> None:
    assert all(x.is_contiguous() for x in (out, input, residual_in, residual_out))
    assert not gemma_norm
    residual_out.copy_(input + residual_in)
    out.copy_(rms_norm(residual_out, weight, epsilon))


def silu_and_mul(out: Tensor, input: Tensor, limit: float = 0.0) -> None:
    assert out.is_contiguous()
    assert input.is_contiguous()
    assert limit == 0
    gate, up = input.float().chunk(2, dim=-1)
    out.copy_(torch.nn.functional.silu(gate) * up)


def gemm_a8w8_blockscale(
    XQ: Tensor,
    WQ: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    isBpreshuffled: bool = False,
) -> Tensor:
    assert dtype in (torch.bfloat16, torch.float16)
    assert not isBpreshuffled
    assert XQ.dtype == WQ.dtype
    assert all(x.is_contiguous() for x in (XQ, WQ, x_scale, w_scale))
    (m, k), n = XQ.shape, WQ.shape[0]
    assert x_scale.shape == (m, k // 128)
    assert w_scale.shape == (-(-n // 128), k // 128)
    x = XQ.float() * x_scale.repeat_interleave(128, dim=1)
    scales = w_scale.repeat_interleave(128, dim=0)[:n].repeat_interleave(128, dim=1)
    return (x @ (WQ.float() * scales).t()).to(dtype)
