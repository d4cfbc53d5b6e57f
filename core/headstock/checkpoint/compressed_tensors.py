"""Checkpoints of compressed-tensors in canonical layouts. No torch.

Which format a module has is read off its tensors, so that formats may be mixed, and modules that
the configuration ignores need no list:

- ``weight`` int8 or float8_e4m3fn [O, I] and ``weight_scale``, of the matrix, of output features,
  groups or blocks: "int-quantized", "float-quantized", "naive-quantized", "mxfp8-quantized".
- ``weight_packed`` int32 [O, I / n], n = 32 / bits neighbouring input features to a word;
  ``weight_scale`` [O, G]; and ``weight_shape``, which is (O, I): "pack-quantized". What it stands
  for is scale * (q - zero); zeros, if not the midpoint, are ``weight_zero_point`` int32 [O / n, G].
  ``weight_g_idx`` [I] may have each input feature's group.
- ``weight_packed`` uint8 [O, I / 2], ``weight_scale`` [O, G] and, of NVFP4, one number that divides
  the scales, ``weight_global_scale``: "nvfp4-pack-quantized", "mxfp4-pack-quantized".

Shapes: O output features, I input features, G groups along I.

Source:
    https://github.com/vllm-project/compressed-tensors, compressors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, as_float32
from headstock.checkpoint.four_bit_floats import join_mxfp4, join_nvfp4
from headstock.checkpoint.packed_ints import (
    LAYOUTS,
    WORD_BITS,
    PackedMatrix,
    Parts,
    as_signed,
    as_stored,
    check_groups,
    scattered_groups,
    unpack_columns,
    whole,
)
from headstock.checkpoint.scaled_matrix import join_scale, without_activation_scales
from headstock.errors import CheckpointError, UnsupportedError
from headstock.ops.linear import FP8_GROUP, INT8_GROUP

FORMATS = frozenset(
    {
        "dense",
        "float-quantized",
        "int-quantized",
        "mixed-precision",
        "mxfp4-pack-quantized",
        "mxfp8-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "pack-quantized",
    }
)
PACKED, WEIGHT, SCALE, SCALE_OF_ALL = (
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_global_scale",
)
SHAPE, ZEROS, GROUP_INDEX = "weight_shape", "weight_zero_point", "weight_g_idx"
PARTS = (SCALE, SCALE_OF_ALL, SHAPE, ZEROS, GROUP_INDEX)
"""What a module may have beside its values."""
SCALED = {"int8": INT8_GROUP, "float8_e4m3fn": FP8_GROUP}
"""Dtypes of values that are not packed, to the layout that they become."""
Block = tuple[int, int]


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
    _check(quantization)
    blocks = list(_block_structures(quantization))
    index = without_activation_scales(index)
    joined: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        module, _, part = name.rpartition(".")
        if part == PACKED or (part == WEIGHT and tensor.dtype in SCALED):
            names = (part, *PARTS)
            found = {p: index[f"{module}.{p}"] for p in names if f"{module}.{p}" in index}
            weight = _join(Parts(module, found), blocks)
            joined[f"{module}.{WEIGHT}"] = replace(weight, name=f"{module}.{WEIGHT}")
        elif part not in PARTS or not _is_quantized(module, index):
            joined[name] = tensor
    return joined


def _is_quantized(module: str, index: Mapping[str, StoredTensor]) -> bool:
    weight = index.get(f"{module}.{WEIGHT}")
    return f"{module}.{PACKED}" in index or (weight is not None and weight.dtype in SCALED)


def _check(quantization: Mapping[str, Any]) -> None:
    """Refuse what changes the weights, or the activations, beyond what is read."""
    form = quantization.get("format")
    sparse = _inside(quantization, "sparsity_config").get("format", "dense")
    rotated = _inside(quantization, "transform_config").get("config_groups")
    for key, value, is_read in (
        ("format", form, isinstance(form, str) and form in FORMATS),
        ("sparsity_config.format", sparse, sparse == "dense"),
        ("transform_config", rotated, not rotated),
    ):
        if not is_read:
            raise UnsupportedError(
                f"The compressed-tensors checkpoint has {key} {str(value)[:80]!r}, which cannot be"
                " read.",
                remedy=f"Use a checkpoint without, in one of {', '.join(sorted(FORMATS))}; or the"
                " unquantised one with --quantization.",
            )


def _block_structures(quantization: Mapping[str, Any]) -> Iterator[Block]:
    """Yield the rows and columns of the blocks that ``config_groups`` speak of."""
    groups = _inside(quantization, "config_groups")
    for name in groups:
        found: Any = _inside(_inside(groups, name), "weights").get("block_structure")
        if found is None:
            continue
        sizes = cast("list[Any]", found.split("x") if isinstance(found, str) else found)
        try:
            rows, columns = (int(size) for size in sizes)
        except (TypeError, ValueError) as error:
            raise _malformed("block_structure", found) from error
        if rows < 1 or columns < 1:
            raise _malformed("block_structure", found)
        yield rows, columns


def _inside(settings: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object of the configuration; empty where there is none.

    Raises:
        CheckpointError: It is something else.
    """
    found = settings.get(key)
    if found is not None and not isinstance(found, dict):
        raise _malformed(key, found)
    return cast("dict[str, Any]", found or {})


def _malformed(key: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"quantization_config has {key} {str(value)[:80]!r}, which is none.",
        remedy="Download config.json again.",
    )


def _join(parts: Parts, blocks: list[Block]) -> StoredTensor:
    if PACKED not in parts.tensors:
        return _join_scaled(parts, blocks)
    packed = parts.matrix(PACKED)
    if packed.dtype == "int32":
        return as_stored(packed, _join_packed(parts), list(parts.tensors.values()))
    if ZEROS in parts.tensors:
        raise UnsupportedError(
            f"{parts.module}.{ZEROS} makes 4-bit floating point numbers asymmetric, which cannot be"
            " read.",
            remedy="Use a symmetric checkpoint, or the unquantised one.",
        )
    scale = parts.tensors.get(SCALE)
    if scale is not None and scale.dtype == "uint8":
        return join_mxfp4(parts, PACKED)
    return join_nvfp4(parts, PACKED, SCALE_OF_ALL, divides=True)


def _join_scaled(parts: Parts, blocks: list[Block]) -> StoredTensor:
    weight, scale, zero = (parts.tensors.get(part) for part in (WEIGHT, SCALE, ZEROS))
    assert weight is not None, "modules are found by their weight"
    if scale is not None and scale.dtype == "uint8":  # exponents of MXFP8
        scale = replace(scale, dtype="float8_e8m0fnu")
    shape = None if scale is None else scale.shape
    fits = [b for b in blocks if len(weight.shape) == 2 and shape == _grid(weight.shape, b)]
    if zero is not None and weight.dtype != "int8":
        zero = None if not whole(zero).any() else zero
        if zero is not None:
            raise UnsupportedError(
                f"{parts.module}.{ZEROS} holds other numbers than 0 for floating point weights.",
                remedy="Use a symmetric checkpoint, or the unquantised one.",
            )
    return join_scale(
        weight,
        scale,
        f"{parts.module}.{SCALE}",
        SCALED[weight.dtype],
        block=fits[0] if fits else None,
        zero=zero,
    )


def _grid(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    return tuple(-(-size // unit) for size, unit in zip(shape, block, strict=True))


def _join_packed(parts: Parts) -> PackedMatrix:
    packed = parts.matrix(PACKED)
    out_features, in_features = (int(n) for n in whole(parts.take(SHAPE, (2,))))
    bits = WORD_BITS * packed.shape[1] // max(in_features, 1)
    if bits not in LAYOUTS or packed.shape != (out_features, in_features * bits // WORD_BITS):
        raise CheckpointError(
            f"{packed.name} is {list(packed.shape)}, which holds no matrix of {out_features} x"
            f" {in_features} in 4 or 8 bits.",
            remedy="Check that the files belong together; other widths cannot be read.",
        )
    found = parts.tensors.get(SCALE)
    num_groups = found.shape[-1] if found is not None and len(found.shape) == 2 else 1
    scales = parts.take(SCALE, (out_features, num_groups))
    group_size = check_groups(parts.module, in_features, in_features // max(num_groups, 1))
    zero = None
    if ZEROS in parts.tensors:
        words_GW = parts.take(ZEROS, (-(-out_features * bits // WORD_BITS), num_groups))
        zero = partial(_zeros, words_GW, bits)

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
        zero=zero,
        group_of_I=scattered_groups(parts, GROUP_INDEX, in_features, group_size),
    )


def _zeros(words: StoredTensor, bits: int, begin: int, end: int) -> Array:
    return unpack_columns(np.ascontiguousarray(whole(words).T), bits, begin, end)
