"""Norms and the gated activation by AITER.

Shapes: T tokens, D features of a row, G = 2 F gates and ups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock_rocm.libraries import load_aiter


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """Normalise each row. [..., D]"""
    rows_TD = x_TD.reshape(-1, x_TD.shape[-1]).contiguous()
    return load_aiter().rms_norm(rows_TD, weight_D, eps).view(x_TD.shape)


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalise the sum. [T, D] each"""
    normal_TD, total_TD = (torch.empty_like(residual_TD) for _ in range(2))
    load_aiter().rmsnorm2d_fwd_with_add(
        normal_TD, x_TD.contiguous(), residual_TD.contiguous(), total_TD, weight_D, eps
    )
    return normal_TD, total_TD


def silu_and_mul(gate_up_TG: Tensor) -> Tensor:
    """Return silu(gate) * up. [T, F]"""
    shape = (*gate_up_TG.shape[:-1], gate_up_TG.shape[-1] // 2)
    out_TF = torch.empty(shape, dtype=gate_up_TG.dtype, device=gate_up_TG.device)
    load_aiter().silu_and_mul(out_TF, gate_up_TG.contiguous())
    return out_TF
