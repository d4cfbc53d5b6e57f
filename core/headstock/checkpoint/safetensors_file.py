"""Reads safetensors files through a memory map: 8 bytes of length, a JSON header, the tensors.

An own reader of the published format, since rooms without torch read it too and numpy has no
bfloat16.

Source:
    https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, dense_reader
from headstock.checkpoint.mapping import MappedFile
from headstock.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1 << 18
MAX_ENTRY_BYTES = 1 << 12
"""Of what a header says of one tensor: a shape of 64 numbers takes a quarter of it."""
MAX_DIMENSIONS = 8
DTYPES: dict[str, tuple[str, type[np.generic]]] = {
    "F64": ("float64", np.float64),
    "F32": ("float32", np.float32),
    "F16": ("float16", np.float16),
    "BF16": ("bfloat16", np.uint16),
    "I64": ("int64", np.int64),
    "I32": ("int32", np.int32),
    "I16": ("int16", np.int16),
    "I8": ("int8", np.int8),
    "U8": ("uint8", np.uint8),
    "BOOL": ("bool", np.bool_),
    "F8_E4M3": ("float8_e4m3fn", np.uint8),
    "F8_E5M2": ("float8_e5m2", np.uint8),
    "F8_E8M0": ("float8_e8m0fnu", np.uint8),
}
"""Name in the file to our name and the numpy type that holds the bits."""


class _Entry(msgspec.Struct):
    """What the header says of one tensor; its bytes are [begin, end) of what follows."""

    dtype: str
    shape: Annotated[tuple[int, ...], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    data_offsets: tuple[int, int]


def read_safetensors(path: Path) -> Iterator[StoredTensor]:
    """Yield the tensors of ``path`` in the order of their data.

    Raises:
        CheckpointError: The file is damaged, or holds a dtype that is not known.
    """
    file = MappedFile(path)
    data = file.data
    if data.size < 8:
        raise _damaged(path, f"it has {data.size} bytes, a header needs 8")
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    if header_bytes > min(MAX_HEADER_BYTES, data.size - 8):
        raise _damaged(path, f"its header claims {header_bytes} bytes of {data.size}")
    body = data[8 + header_bytes :]
    entries = _read_header(path, data[8 : 8 + header_bytes].tobytes())
    for name, entry in entries.items():
        _check_entry(path, name, entry, body.size)
    in_order = sorted(entries.items(), key=lambda item: item[1].data_offsets)
    end, before = 0, ""
    for name, entry in in_order:
        begin = entry.data_offsets[0]
        if begin < entry.data_offsets[1] and begin < end:
            raise _damaged(path, f"{before} and {name} overlap at byte {begin}")
        end, before = entry.data_offsets[1], name
    for name, entry in in_order:
        yield _tensor(path, name, entry, body, file)


def _read_header(path: Path, header: bytes) -> dict[str, _Entry]:
    """Return the entries of the tensors; what stands beside an entry's keys is passed over."""
    try:
        found = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, f"its header is not a JSON object: {error}") from error
    found.pop("__metadata__", None)
    if len(found) > MAX_TENSORS:
        raise _damaged(path, f"its header names {len(found)} tensors, {MAX_TENSORS} are read")
    read = msgspec.json.Decoder(_Entry).decode
    entries: dict[str, _Entry] = {}
    for name, raw in found.items():
        if len(raw) > MAX_ENTRY_BYTES:
            raise _damaged(path, f"the header's entry for {name} has {len(raw)} bytes")
        try:
            entries[name] = read(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(path, f"the header's entry for {name} is malformed: {error}") from error
    return entries


def _check_entry(path: Path, name: str, entry: _Entry, body_bytes: int) -> None:
    """Check one entry of the header against the file."""
    kind, shape, (begin, end) = entry.dtype, entry.shape, entry.data_offsets
    if kind not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} has dtype {kind}, which is not known.",
            remedy=f"Save it as one of {', '.join(DTYPES)}.",
        )
    num_bytes = math.prod(shape) * np.dtype(DTYPES[kind][1]).itemsize
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= body_bytes or end - begin != num_bytes:
        raise _damaged(
            path, f"{name} {list(shape)} {kind} lies at [{begin}, {end}) of {body_bytes} bytes"
        )


def _tensor(path: Path, name: str, entry: _Entry, body: Array, file: MappedFile) -> StoredTensor:
    dtype, numpy_type = DTYPES[entry.dtype]
    begin, end = entry.data_offsets
    try:
        array = body[begin:end].view(numpy_type).reshape(entry.shape)
    except (ValueError, OverflowError) as error:  # empty, and of sizes that no array has
        raise _damaged(path, f"{name} has the shape {list(entry.shape)}") from error
    return StoredTensor(
        name=name,
        shape=entry.shape,
        dtype=dtype,
        num_bytes=end - begin,
        read=dense_reader(array),
        file=file,
    )


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole safetensors file: {what}.", remedy="Download the file again."
    )
