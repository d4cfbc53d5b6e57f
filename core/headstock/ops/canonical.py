"""Canonical quantised layouts, made and read back: what the references and the kit need.

Shapes: O output features, I input features, G groups along I, g features of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.errors import UnsupportedError
from headstock.ops.layouts import FP4_VALUES, CanonicalLayout, Stored

if TYPE_CHECKING:
    from headstock.ops.linear import CanonicalWeight

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
    table = torch.tensor(FP4_VALUES, device=weight_OI.device)
    shares_OGg = groups_OGg / scale_OG.unsqueeze(-1)
    code_OGg = torch.bucketize(shares_OGg.abs(), (table[1:] + table[:-1]) / 2)
    nibbles_OI = (code_OGg + 8 * (shares_OGg < 0)).flatten(1).to(torch.uint8)
    return {"weight": nibbles_OI[:, 0::2] | (nibbles_OI[:, 1::2] << 4), "scale": scale_OG}


def mxfp4_as_int8(part: CanonicalWeight) -> dict[str, Tensor]:
    """Return an ``mxfp4`` weight in ``int8-group``, exactly: in halves all values are whole."""
    table = torch.tensor(FP4_VALUES, device=part["weight"].device)
    halves = torch.cat((table, -table)).mul(2).to(torch.int8)
    nibbles_OI = torch.stack((part["weight"] & 15, part["weight"] >> 4), dim=-1).flatten(1)
    return {"weight": halves[nibbles_OI.int()], "scale": part["scale"] / 2}


def keep_dense(weight_OI: Tensor, group_size: int) -> dict[str, Tensor]:
    """Return the weight as ``dense``; ``group_size`` is 0."""
    assert group_size == 0, f"a dense weight in groups of {group_size}"
    return {"weight": weight_OI}


def dequantize(layout: CanonicalLayout, part: CanonicalWeight, dtype: torch.dtype) -> Tensor:
    """Return the weight that ``part`` stands for, computed in float32. [O, I]"""
    return layout.load_dequantize()(part).to(dtype)


def dequantize_dense(part: CanonicalWeight) -> Tensor:
    """Return a ``dense`` weight as it is. [O, I]"""
    return part["weight"]


def dequantize_scaled(part: CanonicalWeight) -> Tensor:
    """Return what ``int8-group`` and ``fp8-group`` stand for. float32. [O, I]"""
    scale_OG1 = part["scale"].unsqueeze(-1)
    groups_OGg = part["weight"].unflatten(1, (scale_OG1.shape[1], -1)).to(torch.float32)
    return (groups_OGg * scale_OG1).flatten(1)


def dequantize_int4(part: CanonicalWeight) -> Tensor:
    """Return what ``int4-group`` stands for. float32. [O, I]"""
    scale_OG1 = part["scale"].unsqueeze(-1)
    nibbles_OI = torch.stack((part["weight"] & 15, part["weight"] >> 4), dim=-1).flatten(1)
    groups_OGg = nibbles_OI.unflatten(1, (scale_OG1.shape[1], -1)).to(torch.float32)
    return (groups_OGg * scale_OG1 + part["minimum"].unsqueeze(-1)).flatten(1)


def dequantize_mxfp4(part: CanonicalWeight) -> Tensor:
    """Return what ``mxfp4`` stands for. float32. [O, I]"""
    return dequantize_scaled(mxfp4_as_int8(part))


def empty_parts(
    layout: CanonicalLayout,
    group_size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return room for a weight of ``shape`` [O, I], not filled.

    Args:
        layout: What to keep it in.
        group_size: Input features of a group; 0 for dense.
        shape: O and I.
        dtype: Of the parts that are in the model's dtype.
        device: Where it is.

    Raises:
        UnsupportedError: The input features do not divide into groups.
    """
    out_features, in_features = shape
    if layout.has_groups and (
        group_size < 1 or in_features % group_size or in_features % layout.unit
    ):
        raise UnsupportedError(
            f"{in_features} input features do not divide into groups of {group_size} in layout"
            f" {layout}.",
            remedy="Serve this layer dense, or at a tensor parallel size that keeps groups whole.",
        )
    return {
        name: torch.empty(
            (out_features, in_features // (stored.features or group_size)),
            dtype=part_dtype(stored, dtype),
            device=device,
        )
        for name, stored in layout.parts.items()
    }


def count_bytes(
    layout: CanonicalLayout, group_size: int, num_elements: int, dtype: torch.dtype
) -> int:
    """Return the bytes of ``num_elements`` of a weight; see :func:`empty_parts`."""
    return sum(
        num_elements // (stored.features or group_size) * part_dtype(stored, dtype).itemsize
        for stored in layout.parts.values()
    )


def part_dtype(stored: Stored, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a part; ``dtype`` is the model's."""
    return getattr(torch, stored.dtype) if stored.dtype else dtype


def _grouped(weight_OI: Tensor, group_size: int) -> Tensor:
    assert weight_OI.shape[1] % group_size == 0, (
        f"{weight_OI.shape[1]} input features are no multiple of the group size, {group_size}"
    )
    return weight_OI.unflatten(1, (-1, group_size))
