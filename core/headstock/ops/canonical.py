"""Canonical quantised layouts, made and read back: what the references and the kit need.

Shapes: O output features, I input features, G groups along I, g features of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.linear import (
    DENSE,
    FP4_MAGNITUDES,
    FP8_GROUP,
    INT4_GROUP,
    INT8_GROUP,
    MXFP4,
    CanonicalWeight,
)

FP8_MAX = 448.0
"""Largest finite float8_e4m3fn."""


def quantize_int8(weight_OI: Tensor, group_size: int) -> dict[str, Tensor]:
    """Quantise to ``int8-group``: symmetric, the largest magnitude of a group becomes 127."""
    groups_OGg = _grouped(weight_OI.to(torch.float32), group_size)
    scale_OG = groups_OGg.abs().amax(dim=-1) / 127
    steps_OG1 = torch.where(scale_OG > 0, scale_OG, 1.0).unsqueeze(-1)
    quantized_OGg = (groups_OGg / steps_OG1).round().clamp(-127, 127)
    return {"weight": quantized_OGg.flatten(1).to(torch.int8), "scale": scale_OG}


def quantize_int4(weight_OI: Tensor, group_size: int) -> dict[str, Tensor]:
    """Quantise to ``int4-group``: a group's extremes become 0 and 15."""
    groups_OGg = _grouped(weight_OI.to(torch.float32), group_size)
    minimum_OG = groups_OGg.amin(dim=-1)
    scale_OG = (groups_OGg.amax(dim=-1) - minimum_OG) / 15
    steps_OG1 = torch.where(scale_OG > 0, scale_OG, 1.0).unsqueeze(-1)
    quantized_OGg = ((groups_OGg - minimum_OG.unsqueeze(-1)) / steps_OG1).round().clamp(0, 15)
    quantized_OI = quantized_OGg.flatten(1).to(torch.uint8)
    packed = quantized_OI[:, 0::2] | (quantized_OI[:, 1::2] << 4)
    return {"weight": packed, "scale": scale_OG, "minimum": minimum_OG}


def quantize_fp8(weight_OI: Tensor, group_size: int) -> dict[str, Tensor]:
    """Quantise to ``fp8-group``: the largest magnitude of a group becomes :data:`FP8_MAX`.

    Where the rows divide by the group size, blocks of as many rows share their scales: tensor
    cores multiply by such blocks the fastest.
    """
    groups_OGg = _grouped(weight_OI.to(torch.float32), group_size)
    scale_OG = groups_OGg.abs().amax(dim=-1) / FP8_MAX
    if scale_OG.shape[0] % group_size == 0:
        largest = scale_OG.unflatten(0, (-1, group_size)).amax(dim=1)
        scale_OG = largest.repeat_interleave(group_size, dim=0)
    steps_OG1 = torch.where(scale_OG > 0, scale_OG, 1.0).unsqueeze(-1)
    quantized_OGg = (groups_OGg / steps_OG1).clamp(-FP8_MAX, FP8_MAX)
    return {"weight": quantized_OGg.flatten(1).to(torch.float8_e4m3fn), "scale": scale_OG}


def quantize_mxfp4(weight_OI: Tensor, group_size: int) -> dict[str, Tensor]:
    """Quantise to ``mxfp4``: a group's largest magnitude becomes 4 to 8, of which 6 is the most.

    Source:
        Open Compute Project, "OCP Microscaling Formats (MX) Specification" 1.0, section 6.3.
    """
    groups_OGg = _grouped(weight_OI.to(torch.float32), group_size)
    largest_OG = groups_OGg.abs().amax(dim=-1)
    exponent_OG = torch.where(largest_OG > 0, largest_OG, 1.0).log2().floor() - 2
    scale_OG = exponent_OG.clamp(-127, 127).exp2()
    table = torch.tensor(FP4_MAGNITUDES, device=weight_OI.device)
    shares_OGg = groups_OGg / scale_OG.unsqueeze(-1)
    code_OGg = torch.bucketize(shares_OGg.abs(), (table[1:] + table[:-1]) / 2)
    nibbles_OI = (code_OGg + 8 * (shares_OGg < 0)).flatten(1).to(torch.uint8)
    return {"weight": nibbles_OI[:, 0::2] | (nibbles_OI[:, 1::2] << 4), "scale": scale_OG}


def mxfp4_as_int8(part: CanonicalWeight) -> dict[str, Tensor]:
    """Return an ``mxfp4`` weight in ``int8-group``, exactly: in halves all values are whole."""
    table = torch.tensor(FP4_MAGNITUDES, device=part["weight"].device)
    halves = torch.cat((table, -table)).mul(2).to(torch.int8)
    nibbles_OI = torch.stack((part["weight"] & 15, part["weight"] >> 4), dim=-1).flatten(1)
    return {"weight": halves[nibbles_OI.int()], "scale": part["scale"] / 2}


def dequantize(layout: str, part: CanonicalWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight that ``part`` stands for, computed in float32. [O, I]"""
    if layout == DENSE:
        return part["weight"].to(dtype)
    scale_OG1 = part["scale"].unsqueeze(-1)
    num_groups = scale_OG1.shape[1]
    if layout == MXFP4:
        return dequantize(INT8_GROUP, mxfp4_as_int8(part), dtype)
    if layout in (INT8_GROUP, FP8_GROUP):
        groups_OGg = part["weight"].unflatten(1, (num_groups, -1)).to(torch.float32) * scale_OG1
        return groups_OGg.flatten(1).to(dtype)
    assert layout == INT4_GROUP, f"no such layout: {layout!r}"
    nibbles_OI = torch.stack((part["weight"] & 15, part["weight"] >> 4), dim=-1).flatten(1)
    groups_OGg = nibbles_OI.unflatten(1, (num_groups, -1)).to(torch.float32)
    return (groups_OGg * scale_OG1 + part["minimum"].unsqueeze(-1)).flatten(1).to(dtype)


def _grouped(weight_OI: Tensor, group_size: int) -> Tensor:
    assert weight_OI.shape[1] % group_size == 0, (
        f"{weight_OI.shape[1]} input features are no multiple of the group size, {group_size}"
    )
    return weight_OI.unflatten(1, (-1, group_size))
