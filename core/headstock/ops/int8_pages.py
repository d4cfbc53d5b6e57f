"""Keys and values in 8 bits: whole numbers from -127 to 127, and a float32 scale a token and head.

Shapes: D features of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALE_BYTES = 4
"""Of a token's scale in a head: a float32."""
STEPS = 127
"""The largest magnitude becomes this."""


def to_int8(x_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers and their scale, to the nearest, ties to even.

    A head with what is not a number, or infinite, has a scale that is not a finite number: what
    is read back is not one either.

    Args:
        x_D: Keys or values. [..., D]

    Returns:
        int8 [..., D] and float32 [..., 1].
    """
    x_D = x_D.to(torch.float32)
    scale_1 = x_D.abs().amax(dim=-1, keepdim=True) / STEPS
    step_1 = torch.where(scale_1 > 0, scale_1, torch.ones_like(scale_1))
    return torch.round(x_D / step_1).nan_to_num(0.0).to(torch.int8), scale_1


def pack_int8(x_D: Tensor) -> Tensor:
    """Return ``x_D`` in 8 bits, its scale in the last four bytes. int8. [..., D + 4]"""
    whole_D, scale_1 = to_int8(x_D)
    return torch.cat((whole_D, scale_1.contiguous().view(torch.int8)), dim=-1)


def unpack_int8(packed: Tensor) -> Tensor:
    """Return what :func:`pack_int8` was given, but for the rounding. float32. [..., D]"""
    whole_D, scale_bytes = packed.split((packed.shape[-1] - SCALE_BYTES, SCALE_BYTES), dim=-1)
    return whole_D.to(torch.float32) * scale_bytes.clone().view(torch.float32)
