"""Parses GGUF, version 2 and 3: metadata and where the tensors lie, not what they mean.

An own parser, since a server's start waits for it: arrays are skipped until asked for. Nothing in
the file is believed: every count and offset is checked against the file's size before use.

Source:
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array
from headstock.checkpoint.gguf_blocks import BLOCKS, Block
from headstock.checkpoint.mapping import MappedFile
from headstock.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
MAX_NESTING = 4
MAX_KEYS = MAX_TENSORS = 1 << 16
MAX_ITEMS = 1 << 22
"""Of all arrays in the metadata: vocabulary, kinds, scores and merges of a million tokens."""
STRING, ARRAY = 8, 9
SCALARS: dict[int, str] = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?",
    10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
"""Value type to the numpy type of its bytes."""


@dataclass(frozen=True, slots=True)
class SkippedArray:
    """An array in the metadata, read only when asked for."""

    item_type: int
    length: int
    begin: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies.

    Attributes:
        shape: Rows first, as PyTorch has it; the file lists the sizes the other way round.
        block: How its elements are packed.
        begin: First byte, from the start of the file.
        num_bytes: How many there are.
        file: That has it, which may be another than that of the metadata.
    """

    name: str
    shape: tuple[int, ...]
    block: Block
    begin: int
    num_bytes: int
    file: MappedFile = field(repr=False, compare=False)


class GGUFFile:
    """The parsed header of a GGUF file.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is no GGUF file, damaged, or of a kind that is not known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        cursor = _Cursor(path, MappedFile(path))
        if cursor.take(4) != MAGIC:
            raise cursor.damaged("it does not begin with GGUF")
        version = cursor.number("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in VERSIONS
            raise cursor.damaged(
                "it is big-endian" if swapped else f"it is version {version}, not 2 or 3"
            )
        num_tensors = cursor.count("tensors", least_bytes=8 + 4 + 4 + 8, most=MAX_TENSORS)
        num_keys = cursor.count("metadata keys", least_bytes=8 + 4 + 1, most=MAX_KEYS)
        self.metadata: Mapping[str, Any] = self._read_metadata(cursor, num_keys)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise cursor.damaged(f"its alignment is {alignment}")
        raw = [_read_tensor(cursor) for _ in range(num_tensors)]
        data_begin = -(-cursor.at // alignment) * alignment
        self.tensors = _place(cursor, raw, data_begin, alignment)
        self._cursor = cursor

    @staticmethod
    def _read_metadata(cursor: _Cursor, num_keys: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = cursor.string()
            if key in metadata:
                raise cursor.damaged(f"metadata key {key!r} is there twice")
            metadata[key] = cursor.value()
        return metadata

    def array(self, key: str) -> list[Any]:
        """Read a metadata array; [] when there is none of that key.

        Raises:
            CheckpointError: The key holds something else.
        """
        found = self.metadata.get(key)
        if found is None:
            return []
        if not isinstance(found, SkippedArray):
            raise self._cursor.damaged(f"metadata key {key!r} is not an array")
        return self._cursor.array(found)

    def blocks(self, tensor: TensorInfo) -> Array:
        """Return a tensor's bytes, a view of the file: [rows, bytes of a row], both maybe 1."""
        data = tensor.file.data[tensor.begin : tensor.begin + tensor.num_bytes]
        num_rows = math.prod(tensor.shape[:-1])
        return data.reshape(num_rows, -1) if tensor.num_bytes else data.reshape(num_rows, 0)


class _Cursor:
    """Reads forward through the header, never past the end."""

    def __init__(self, path: Path, file: MappedFile) -> None:
        self.path = path
        self.file = file
        self.view = memoryview(file.data.data)
        self.size = len(self.view)
        self.at = 0
        self.num_items = 0

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path} is not a whole GGUF file: {what}.", remedy="Download the file again."
        )

    def skip(self, num_bytes: int) -> int:
        """Move past ``num_bytes`` and return where they began."""
        begin = self.at
        if num_bytes > self.size - begin:
            raise self.damaged(
                f"it ends at byte {self.size}, {num_bytes} more are expected at byte {begin}"
            )
        self.at = begin + num_bytes
        return begin

    def take(self, num_bytes: int) -> bytes:
        begin = self.skip(num_bytes)
        return bytes(self.view[begin : begin + num_bytes])

    def number(self, form: str) -> int:
        return struct.unpack_from(form, self.view, self.skip(struct.calcsize(form)))[0]

    def count(self, what: str, least_bytes: int, most: int | None = None) -> int:
        """Read how many items follow; refuse more than ``most``, and than the file could hold."""
        count = self.number("<Q")
        if count * least_bytes > self.size - self.at or (most is not None and count > most):
            raise self.damaged(f"it claims {count} {what} at byte {self.at} of {self.size}")
        return count

    def count_items(self, least_bytes: int) -> int:
        """Read how many items an array has."""
        count = self.count("array items", least_bytes, MAX_ITEMS - self.num_items)
        self.num_items += count
        return count

    def string(self) -> str:
        raw = self.take(self.count("bytes of text", least_bytes=1))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.damaged(f"the text before byte {self.at} is not UTF-8") from error

    def value(self) -> Any:
        """Read one metadata value; arrays are skipped."""
        kind = self.number("<I")
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self._skip_array(MAX_NESTING)
        return self._scalar(kind)

    def _scalar(self, kind: int) -> Any:
        form = SCALARS.get(kind)
        if form is None:
            raise self.damaged(f"value type {kind} before byte {self.at} is not known")
        return np.frombuffer(self.take(np.dtype(form).itemsize), form)[0].item()

    def _skip_array(self, nesting: int) -> SkippedArray:
        item_type = self.number("<I")
        form = SCALARS.get(item_type)
        if form is not None:
            item_bytes = np.dtype(form).itemsize
            length = self.count_items(item_bytes)
            return SkippedArray(item_type, length, self.skip(length * item_bytes))
        if item_type == ARRAY and nesting > 0:
            length = self.count_items(12)
            begin = self.at
            for _ in range(length):
                self._skip_array(nesting - 1)
            return SkippedArray(item_type, length, begin)
        if item_type != STRING:
            raise self.damaged(f"array of type {item_type} before byte {self.at} is not known")
        length = self.count_items(8)
        begin = self.at
        self._skip_strings(length)
        return SkippedArray(item_type, length, begin)

    def _skip_strings(self, length: int) -> None:
        """Walk over ``length`` strings; a loop of its own, since vocabularies have 10^5."""
        read, view, begin = struct.Struct("<Q").unpack_from, self.view, self.at
        at, last = begin, self.size - 8
        for _ in range(length):
            if at > last:
                raise self.damaged(f"it ends at byte {self.size}, within an array of text")
            at += 8 + read(view, at)[0]
        self.skip(at - begin)

    def array(self, array: SkippedArray) -> list[Any]:
        """Read an array that was skipped."""
        form = SCALARS.get(array.item_type)
        if form is not None:
            return np.frombuffer(self.view, form, array.length, array.begin).tolist()
        self.at = array.begin
        if array.item_type == STRING:
            return [self.string() for _ in range(array.length)]
        return [self.array(self._skip_array(MAX_NESTING)) for _ in range(array.length)]


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Read one entry of the tensor table: name, shape, type number, offset in the data."""
    name = cursor.string()
    num_dimensions = cursor.number("<I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.damaged(f"tensor {name!r} has {num_dimensions} dimensions")
    sizes = [cursor.number("<Q") for _ in range(num_dimensions)]
    return name, tuple(reversed(sizes)), cursor.number("<I"), cursor.number("<Q")


def _place(
    cursor: _Cursor,
    raw: list[tuple[str, tuple[int, ...], int, int]],
    data_begin: int,
    alignment: int,
) -> dict[str, TensorInfo]:
    """Check that every tensor is packed in a known way, lies within the file, and alone."""
    placed: list[TensorInfo] = []
    for name, shape, type_number, offset in raw:
        block = BLOCKS.get(type_number)
        if block is None:
            raise CheckpointError(
                f"{cursor.path}: tensor {name} has GGUF type {type_number}, which is not known.",
                remedy=f"Requantise the file to one of"
                f" {', '.join(sorted(block.name for block in BLOCKS.values()))}.",
            )
        num_elements = math.prod(shape)
        if shape[-1] % block.elements:
            raise cursor.damaged(f"{name} has rows of {shape[-1]}, {block.name} needs whole blocks")
        num_bytes = num_elements // block.elements * block.num_bytes
        begin = data_begin + offset
        if offset % alignment or num_bytes > cursor.size - begin:
            raise cursor.damaged(f"{name} takes {num_bytes} bytes at byte {begin} of {cursor.size}")
        placed.append(TensorInfo(name, shape, block, begin, num_bytes, cursor.file))
    placed.sort(key=lambda tensor: (tensor.begin, tensor.num_bytes))
    for before, after in pairwise(placed):
        if before.begin + before.num_bytes > after.begin:
            raise cursor.damaged(f"{before.name} and {after.name} overlap")
    by_name = {tensor.name: tensor for tensor in placed}
    if len(by_name) != len(placed):
        raise cursor.damaged("two tensors have the same name")
    return by_name
