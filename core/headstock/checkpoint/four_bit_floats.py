"""Matrices of float4_e2m1 in a module of their own, as canonical layouts. No torch.

A byte holds two neighbouring input features, the first in its low nibble, as in ``mxfp4``. With
scales that are powers of two, for 32 input features, that is the layout. NVFP4 has scales in
float8_e4m3fn for 16, and one float32 beside them: it becomes ``int8-group`` of 16, exactly, since
halves of all eight magnitudes are whole.

Shapes: O output features, I input features, G groups along I.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, as_float32
from headstock.checkpoint.packed_ints import Parts, pairs_of
from headstock.errors import CheckpointError
from headstock.ops.linear import FP4_MAGNITUDES, INT8_GROUP, MXFP4

MX_GROUP, NV_GROUP = 32, 16
EXPONENT_DTYPE = "float8_e8m0fnu"
_HALVES = (np.array([*FP4_MAGNITUDES, *(-m for m in FP4_MAGNITUDES)]) * 2).astype(np.int8)
_PAIRS = pairs_of(_HALVES)


def join_nvfp4(parts: Parts, main: str, whole: str, *, divides: bool) -> StoredTensor:
    """Return a module's matrix in NVFP4 as ``int8-group``.

    Args:
        parts: The module's tensors; the scales are ``weight_scale``.
        main: The part with the values. [O, I / 2]
        whole: The part with the scale of the whole matrix.
        divides: Whether that divides the groups' scales; else it multiplies them.

    Raises:
        CheckpointError: A tensor is not there, or has another shape.
    """
    packed, scale = _take(parts, main, NV_GROUP)
    found = parts.tensors.get(whole)
    if found is None or found.num_bytes == 0 or max(found.shape, default=1) != 1:
        has = "is not there" if found is None else f"is {list(found.shape)}"
        raise CheckpointError(
            f"{parts.module}.{whole} {has}; one number is expected.",
            remedy="Check that the files belong together, and download them again.",
        )
    of_all = as_float32(found.dtype, found.read_all()["weight"]).reshape(())
    factor = (1 / of_all if divides else of_all) / np.float32(2)

    def read(begin: int, end: int) -> dict[str, Array]:
        bytes_Ob = packed.read(begin, end)["weight"]
        scale_OG = as_float32(scale.dtype, scale.read(begin, end)["weight"])
        return {"weight": np.take(_PAIRS, bytes_Ob).view(np.int8), "scale": scale_OG * factor}

    num_bytes = packed.num_bytes + scale.num_bytes
    shape = (packed.shape[0], packed.shape[1] * 2)
    return replace(
        packed, shape=shape, layout=INT8_GROUP, group_size=NV_GROUP, num_bytes=num_bytes, read=read
    )


def join_mxfp4(parts: Parts, main: str) -> StoredTensor:
    """Return a module's matrix in MXFP4: the layout as it stands.

    Args:
        parts: The module's tensors; the scales are ``weight_scale``, exponents in bytes.
        main: The part with the values. [O, I / 2]

    Raises:
        CheckpointError: A tensor is not there, or has another shape.
    """
    return _with_exponents(*_take(parts, main, MX_GROUP))


def join_four_bits(packed: StoredTensor, scale: StoredTensor | None, name: str) -> StoredTensor:
    """Return a matrix whose values are 4 bits wide, as ``mxfp4``.

    Args:
        packed: Two values a byte. [O, I / 2]
        scale: An exponent of each group of 32 input features, float8_e8m0fnu. [O, I / 32]
        name: Of the scale, for errors.

    Raises:
        CheckpointError: The scale is not there, or of another shape or type.
    """
    shape = packed.shape
    if scale is None:
        raise CheckpointError(
            f"{name} is not there, and {packed.name} is {packed.dtype}.",
            remedy="Check that the files belong together, and download them again.",
        )
    is_matrix = len(shape) == 2 and shape[1] * 2 % MX_GROUP == 0
    wanted = (shape[0], shape[1] * 2 // MX_GROUP) if is_matrix else ()
    if not is_matrix or scale.shape != wanted or scale.dtype != EXPONENT_DTYPE:
        raise CheckpointError(
            f"{name} is {scale.dtype} {list(scale.shape)}, of 4-bit values in {packed.name}"
            f" {list(shape)}; a matrix is expected, with one {EXPONENT_DTYPE} for every"
            f" {MX_GROUP // 2} bytes of a row.",
            remedy="Check that the files and their configuration belong together.",
        )
    return _with_exponents(packed, scale)


def _with_exponents(packed: StoredTensor, scale: StoredTensor) -> StoredTensor:
    """Return the matrix of values and exponents that fit each other."""

    def read(begin: int, end: int) -> dict[str, Array]:
        exponents = scale.read(begin, end)["weight"]
        return {
            "weight": packed.read(begin, end)["weight"].view(np.uint8),
            "scale": as_float32(EXPONENT_DTYPE, exponents),
        }

    num_bytes = packed.num_bytes + scale.num_bytes
    shape = (packed.shape[0], packed.shape[1] * 2)
    return replace(
        packed, shape=shape, layout=MXFP4, group_size=MX_GROUP, num_bytes=num_bytes, read=read
    )


def _take(parts: Parts, main: str, group_size: int) -> tuple[StoredTensor, StoredTensor]:
    """Return the values and the scales, one for each group."""
    packed = parts.matrix(main)
    num_groups = -(-packed.shape[1] * 2 // group_size)
    return packed, parts.take("weight_scale", (packed.shape[0], num_groups))
