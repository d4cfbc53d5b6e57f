"""Checkpoints of compressed-tensors, format "pack-quantized", symmetric. No torch.

A module has ``weight_packed`` int32 [O, I / n], n = 32 / bits neighbouring input features to a
word; ``weight_scale`` [O, G]; and ``weight_shape``, which is (O, I). What it stands for is
scale * (q - midpoint).

Shapes: O output features, I input features, G groups along I.

Source:
    https://github.com/vllm-project/compressed-tensors, compressors, "pack_quantized".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, as_float32
from headstock.checkpoint.packed_ints import (
    LAYOUTS,
    WORD_BITS,
    PackedMatrix,
    Parts,
    as_signed,
    check_groups,
    check_order,
    join_modules,
    whole,
)
from headstock.errors import CheckpointError, UnsupportedError

FORMAT = "pack-quantized"
ZEROS, GROUP_INDEX = "weight_zero_point", "weight_g_idx"
"""Tensors of asymmetric matrices, and of groups that may be no runs of input features."""
PARTS = ("weight_packed", "weight_scale", "weight_shape", ZEROS, GROUP_INDEX)


def join_compressed(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with those of each quantised module joined to one weight.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config`` of the model's configuration.

    Raises:
        CheckpointError: A module lacks a tensor, or has one of another shape.
        UnsupportedError: The format, or what a module has of it, cannot be read.
    """
    form = quantization.get("format")
    if form != FORMAT:
        raise UnsupportedError(
            f"The compressed-tensors checkpoint has format {form!r}; only {FORMAT!r} can be read.",
            remedy="Use such a checkpoint, or the unquantised one with --quantization.",
        )
    return join_modules(index, PARTS, _join)


def _join(parts: Parts) -> PackedMatrix:
    if ZEROS in parts.tensors:
        raise UnsupportedError(
            f"{parts.module}.{ZEROS} makes the weight asymmetric; such compressed-tensors cannot be"
            " read.",
            remedy="Use a symmetric checkpoint, or an AWQ one.",
        )
    packed = parts.matrix("weight_packed")
    out_features, in_features = (int(n) for n in whole(parts.take("weight_shape", (2,))))
    bits = WORD_BITS * packed.shape[1] // max(in_features, 1)
    if bits not in LAYOUTS or packed.shape != (out_features, in_features * bits // WORD_BITS):
        raise CheckpointError(
            f"{packed.name} is {list(packed.shape)}, which holds no matrix of {out_features} x"
            f" {in_features} in 4 or 8 bits.",
            remedy="Check that the files belong together; other widths cannot be read.",
        )
    found = parts.tensors.get("weight_scale")
    num_groups = found.shape[-1] if found is not None and found.shape else 1
    scales = parts.take("weight_scale", (out_features, num_groups))
    group_size = check_groups(parts.module, in_features, in_features // max(num_groups, 1))
    check_order(parts, GROUP_INDEX, in_features, group_size)

    def weight(begin: int, end: int) -> Array:
        rows = np.ascontiguousarray(packed.read(begin, end)["weight"]).view(np.uint8)
        return rows if bits == 4 else as_signed(rows)

    return PackedMatrix(
        out_features=out_features,
        in_features=in_features,
        bits=bits,
        group_size=group_size,
        weight=weight,
        scale=lambda begin, end: as_float32(scales.dtype, scales.read(begin, end)["weight"]),
    )
