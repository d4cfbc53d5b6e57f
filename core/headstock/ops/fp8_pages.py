"""Keys and values in FP8: codes of e4m3 (no infinities), and a float32 scale a token and head.

Shapes: D features of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.int8_pages import SCALE_BYTES

LARGEST = 448
"""The largest magnitude becomes this, the largest number of the format."""


def to_fp8(x_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and their scale, to the nearest, ties to even.

    A head with what is not a number, or infinite, has a scale that is not a finite number: what
    is read back is not one either.

    Args:
        x_D: Keys or values. [..., D]

    Returns:
        float8_e4m3fn [..., D] and float32 [..., 1].
    """
    x_D = x_D.to(torch.float32)
    scale_1 = x_D.abs().amax(dim=-1, keepdim=True) / LARGEST
    step_1 = torch.where(scale_1 > 0, scale_1, torch.ones_like(scale_1))
    return (x_D / step_1).nan_to_num(0.0).to(torch.float8_e4m3fn), scale_1


def pack_fp8(x_D: Tensor) -> Tensor:
    """Return ``x_D`` in FP8, its scale in the last four bytes. uint8. [..., D + 4]"""
    codes_D, scale_1 = to_fp8(x_D)
    return torch.cat((codes_D.view(torch.uint8), scale_1.contiguous().view(torch.uint8)), dim=-1)


def unpack_fp8(packed: Tensor) -> Tensor:
    """Return what :func:`pack_fp8` was given, but for the rounding. float32. [..., D]"""
    codes_D, scale_bytes = packed.split((packed.shape[-1] - SCALE_BYTES, SCALE_BYTES), dim=-1)
    numbers_D = codes_D.contiguous().view(torch.float8_e4m3fn).to(torch.float32)
    return numbers_D * scale_bytes.clone().view(torch.float32)
