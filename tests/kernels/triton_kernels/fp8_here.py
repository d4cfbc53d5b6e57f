"""Rows in 8-bit floats by PyTorch: Triton's interpreter rounds ties up and loses carries."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock_triton.fp8 import ROW_UNIT
from headstock_triton.fp8_formats import Fp8Format
from headstock_triton.target import Target, cdiv


def quantised(x_MI: Tensor, kind: Fp8Format) -> tuple[Tensor, Tensor]:
    """Quantise rows as the kernel does. [M, I], float32 [M, G]"""
    groups_MGi = x_MI.float().unflatten(1, (-1, 128))
    scale_MG = groups_MGi.abs().amax(dim=2) / kind.largest
    scale_MG = torch.where(scale_MG > 0, scale_MG, 1.0)
    return (groups_MGi / scale_MG.unsqueeze(2)).flatten(1).to(kind.dtype), scale_MG


def padded(x_MI: Tensor, target: Target, *, kind: Fp8Format) -> tuple[Tensor, Tensor]:
    """Stand for ``quantize_rows``: rows of padding are zeros, their scales are not numbers."""
    values_MI, scale_MG = quantised(x_MI, kind)
    num_rows, size = x_MI.shape
    bytes_PI = torch.zeros((cdiv(num_rows, ROW_UNIT) * ROW_UNIT, size), dtype=torch.uint8)
    bytes_PI[:num_rows] = values_MI.view(torch.uint8)
    scales_GP = torch.full((scale_MG.shape[1], len(bytes_PI)), torch.nan)
    scales_GP[:, :num_rows] = scale_MG.t()
    return bytes_PI.view(kind.dtype), scales_GP.t()
