"""Integer weights packed into 32-bit words: what the readers of such checkpoints share. No torch.

A format keeps a matrix as several tensors named after one module (``name.qweight``,
``name.scales`` …). Which modules are quantised is read off the tensors themselves, so modules that
the configuration leaves out need no list: they have a plain ``name.weight``.

Two kinds of matrices have no canonical layout in their bits, and become ``dense``: those whose
groups are scattered over the input features (activation ordering), and 8-bit ones whose zeros are
others than the midpoint. The former can be had in their bits with the input features sorted by
group, by layers that put activations in that order.

Shapes: O output features, I input features, R of the output features, G groups along I, W words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array, OrderedInputs, StoredTensor, as_float32
from headstock.errors import CheckpointError, UnsupportedError
from headstock.ops.linear import INT4_GROUP, INT8_GROUP

WORD_BITS = 32
LAYOUTS = {4: INT4_GROUP, 8: INT8_GROUP}
MIDPOINTS = {4: 8, 8: 128}
"""What stands for 0 in a symmetric matrix."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The tensors of one quantised module, by the last part of their names."""

    module: str
    tensors: Mapping[str, StoredTensor]

    def matrix(self, part: str) -> StoredTensor:
        """Return a tensor that must have two dimensions.

        Raises:
            CheckpointError: It has not.
        """
        found = self.tensors[part]
        if len(found.shape) != 2:
            raise CheckpointError(
                f"{found.name} is {list(found.shape)}; a matrix is expected.",
                remedy="Check that the files and their configuration belong together.",
            )
        return found

    def take(self, part: str, shape: tuple[int, ...]) -> StoredTensor:
        """Return a tensor whose shape follows from the others.

        Raises:
            CheckpointError: It is not there, or has another shape.
        """
        found = self.tensors.get(part)
        if found is None or found.shape != shape:
            has = "is not there" if found is None else f"is {list(found.shape)}"
            raise CheckpointError(
                f"{self.module}.{part} {has}; the module's other tensors and"
                f" quantization_config make it {list(shape)}.",
                remedy="Check that the files and their configuration belong together.",
            )
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedMatrix:
    """A matrix of integers, and how rows of it are read.

    Attributes:
        out_features: O.
        in_features: I.
        bits: 4 or 8.
        group_size: Input features that share a scale.
        weight: Rows [begin, end) to what the canonical layout calls ``weight``.
        scale: Likewise to float32 scales. [R, G]
        zero: Likewise to the integers that stand for 0; None where it is the midpoint. [R, G]
        group_of_I: Each input feature's group; None where groups are runs of neighbours.
    """

    out_features: int
    in_features: int
    bits: int
    group_size: int
    weight: Callable[[int, int], Array]
    scale: Callable[[int, int], Array]
    zero: Callable[[int, int], Array] | None = None
    group_of_I: Array | None = None


def join_modules(
    index: Mapping[str, StoredTensor],
    parts: Sequence[str],
    join: Callable[[Parts], PackedMatrix],
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with those of each quantised module joined to one weight.

    Args:
        index: Tensors as the files have them.
        parts: Last parts of the names that a quantised module has; the first holds its integers.
        join: Makes a matrix of a module's tensors.
    """
    main, joined = parts[0], dict[str, StoredTensor]()
    for name, tensor in index.items():
        module, _, part = name.rpartition(".")
        if part == main:
            found = {p: index[f"{module}.{p}"] for p in parts if f"{module}.{p}" in index}
            weight = as_stored(tensor, join(Parts(module, found)), list(found.values()))
            joined[f"{module}.weight"] = replace(weight, name=f"{module}.weight")
        elif part not in parts or f"{module}.{main}" not in index:
            joined[name] = tensor
    return joined


def as_stored(
    main: StoredTensor, matrix: PackedMatrix, found: Sequence[StoredTensor]
) -> StoredTensor:
    """Return a matrix as a tensor.

    Args:
        main: The tensor of its integers, which it is named after.
        matrix: What it is.
        found: Every tensor that it is made of.
    """
    shape = (matrix.out_features, matrix.in_features)
    num_bytes = sum(tensor.num_bytes for tensor in found)
    is_lopsided = _is_lopsided(matrix)
    if matrix.group_of_I is not None or is_lopsided:
        dense = replace(
            main,
            shape=shape,
            dtype="float32",
            num_bytes=num_bytes,
            read=partial(_read_dense, matrix),
        )
        order_I = None if is_lopsided else _order(matrix)
        if order_I is None:
            return dense
        inner = replace(matrix, weight=partial(_read_ordered, matrix, order_I), group_of_I=None)
        ordered = OrderedInputs(order_I=order_I, tensor=as_stored(main, inner, found))
        return replace(dense, ordered=ordered)
    return replace(
        main,
        shape=shape,
        layout=LAYOUTS[matrix.bits],
        group_size=matrix.group_size,
        num_bytes=num_bytes,
        read=partial(_read_groups, matrix),
    )


def _order(matrix: PackedMatrix) -> Array | None:
    """Return the input features sorted by group; None where groups differ in size."""
    assert matrix.group_of_I is not None, "groups that are runs need no order"
    num_groups = matrix.in_features // matrix.group_size
    sizes = np.bincount(matrix.group_of_I, minlength=num_groups)
    if not (sizes == matrix.group_size).all():
        return None
    return np.argsort(matrix.group_of_I, kind="stable").astype(np.int64)


def _read_ordered(matrix: PackedMatrix, order_I: Array, begin: int, end: int) -> Array:
    """Return the integers of some rows, their columns in order."""
    rows = matrix.weight(begin, end)
    if matrix.bits == 8:
        return np.take(rows, order_I, axis=1)
    ordered = np.take(unpack_nibbles(rows), order_I, axis=1)
    return ordered[:, 0::2] | (ordered[:, 1::2] << 4)


def _is_lopsided(matrix: PackedMatrix) -> bool:
    """Whether some 8-bit integers have another zero than the midpoint: there is no minimum."""
    if matrix.bits != 8 or matrix.zero is None:
        return False
    return bool((matrix.zero(0, matrix.out_features) != MIDPOINTS[8]).any())


def _read_groups(matrix: PackedMatrix, begin: int, end: int) -> dict[str, Array]:
    scale_RG = matrix.scale(begin, end)
    parts = {"weight": matrix.weight(begin, end), "scale": scale_RG}
    if matrix.bits == 4:
        zero = MIDPOINTS[4] if matrix.zero is None else matrix.zero(begin, end)
        parts["minimum"] = scale_RG * -np.asarray(zero, np.float32)
    return parts


def _read_dense(matrix: PackedMatrix, begin: int, end: int) -> dict[str, Array]:
    """Return what the rows stand for, in float32."""
    group_of_I = matrix.group_of_I
    if group_of_I is None:
        group_of_I = np.arange(matrix.in_features) // matrix.group_size
    rows = matrix.weight(begin, end)
    integers_RI = unpack_nibbles(rows) if matrix.bits == 4 else rows.view(np.uint8) ^ MIDPOINTS[8]
    zero_RI = np.float32(MIDPOINTS[matrix.bits])
    if matrix.zero is not None:
        zero_RI = np.take(matrix.zero(begin, end).astype(np.float32), group_of_I, axis=1)
    weight_RI = integers_RI - zero_RI
    weight_RI *= np.take(matrix.scale(begin, end), group_of_I, axis=1)
    return {"weight": weight_RI}


def check_groups(module: str, in_features: int, group_size: int) -> int:
    """Return the group size, a whole row's for -1.

    Raises:
        UnsupportedError: Groups are odd, or the input features do not divide into them.
    """
    size = in_features if group_size == -1 else group_size
    if size < 1 or size % 2 or in_features % size:
        raise UnsupportedError(
            f"{module} has {in_features} input features in groups of {group_size}; groups must be"
            " even, and divide them.",
            remedy="Use the unquantised checkpoint.",
        )
    return size


def scattered_groups(parts: Parts, part: str, in_features: int, group_size: int) -> Array | None:
    """Return the group of each input feature, where groups are no runs of neighbours; else None.

    The tensor ``part`` has them; without it, or where it holds -1 only, they are runs.

    Raises:
        CheckpointError: There is no such group.
    """
    if part not in parts.tensors:
        return None
    group_of_I, num_groups = whole(parts.take(part, (in_features,))), in_features // group_size
    runs_I = np.arange(in_features) // group_size
    if np.array_equal(group_of_I, runs_I) or (group_of_I == -1).all():
        return None
    if group_of_I.min() < 0 or group_of_I.max() >= num_groups:
        raise CheckpointError(
            f"{parts.module}.{part} holds groups from {group_of_I.min()} to {group_of_I.max()};"
            f" there are {num_groups}.",
            remedy="Check that the files and their configuration belong together.",
        )
    return group_of_I


def whole(tensor: StoredTensor) -> Array:
    """Return a tensor as the file has it; a view, read where it is used."""
    return tensor.read_all()["weight"]


def columns_as_float32(tensor: StoredTensor, begin: int, end: int) -> Array:
    """Return columns [begin, end) of a floating point matrix [G, O] as rows. [R, G]"""
    return np.ascontiguousarray(as_float32(tensor.dtype, whole(tensor)[:, begin:end]).T)


def unpack(words: Array, bits: int, order: Sequence[int] | None = None) -> Array:
    """Return the unsigned integers in ``words`` side by side. int32 [..., W] to [..., W * n]

    Args:
        words: Each holds n = 32 / bits integers, the first in the lowest bits.
        bits: Of an integer.
        order: Which of its n places each integer of a word comes to; by default its own.
    """
    per_word = WORD_BITS // bits
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    fields = (words.view(np.uint32)[..., None] >> shifts) & np.uint32((1 << bits) - 1)
    out = np.empty(fields.shape, np.uint8)
    out[..., list(order or range(per_word))] = fields
    return out.reshape(*words.shape[:-1], -1)


def pairs_of(values: Array, *, is_high_first: bool = False) -> Array:
    """Return what the nibbles of each byte stand for, side by side in one integer. uint16 [256]

    Looked up by byte and viewed as int8, they are the elements of a row.

    Args:
        values: Of a nibble. int8. [16]
        is_high_first: Whether the high nibble is the first element.
    """
    byte = np.arange(256)
    low, high = values[byte & 15], values[byte >> 4]
    pairs = (high, low) if is_high_first else (low, high)
    return np.stack(pairs, axis=-1).view(np.uint16)[:, 0]


_NIBBLES = pairs_of(np.arange(16, dtype=np.int8))


def unpack_nibbles(rows: Array) -> Array:
    """Return 4-bit integers, the low nibble of each byte first. uint8 [R, n] to [R, 2 n]"""
    return np.take(_NIBBLES, rows).view(np.uint8)


def unpack_columns(
    words: Array, bits: int, begin: int, end: int, order: Sequence[int] | None = None
) -> Array:
    """Return columns [begin, end) of packed integers [G, O / n] as rows. [R, G]"""
    per_word = WORD_BITS // bits
    first, last = begin // per_word, -(-end // per_word)
    at = first * per_word
    return unpack(words[:, first:last], bits, order)[:, begin - at : end - at].T


def as_signed(rows: Array) -> Array:
    """Return bytes that count from 128 as int8."""
    return (rows ^ np.uint8(MIDPOINTS[8])).view(np.int8)


def config_integer(quantization: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return an integer of the quantisation's configuration.

    Raises:
        CheckpointError: It is missing, or none.
    """
    value = quantization.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise CheckpointError(
            f"quantization_config has {key} {value!r}, which is not an integer.",
            remedy="Download config.json again.",
        )
    return value
