"""Reads safetensors files through a memory map: 8 bytes of length, a JSON header, the tensors.

An own reader of the published format, since rooms without torch read it too and numpy has no
bfloat16.

Source:
    https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, dense_reader
from headstock.checkpoint.mapping import MappedFile
from headstock.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
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
    try:
        found = json.loads(data[8 : 8 + header_bytes].tobytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise _damaged(path, "its header is not a JSON object")
    header = cast("dict[str, Any]", found)
    header.pop("__metadata__", None)
    body = data[8 + header_bytes :]
    entries = [_entry(path, name, entry, body, file) for name, entry in header.items()]
    entries.sort(key=lambda entry: (entry[0], entry[1].num_bytes))
    end, before = 0, ""
    for begin, tensor in entries:
        if tensor.num_bytes and begin < end:
            raise _damaged(path, f"{before} and {tensor.name} overlap at byte {begin}")
        end, before = begin + tensor.num_bytes, tensor.name
    for _, tensor in entries:
        yield tensor


def _entry(
    path: Path, name: str, entry: Any, body: Array, file: MappedFile
) -> tuple[int, StoredTensor]:
    """Check one entry of the header against the file; return its offset with it."""
    try:
        shape = tuple(int(size) for size in entry["shape"])
        begin, end = (int(offset) for offset in entry["data_offsets"])
        kind = str(entry["dtype"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(path, f"the header's entry for {name} is malformed") from error
    if kind not in DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name} has dtype {kind}, which is not known.",
            remedy=f"Save it as one of {', '.join(DTYPES)}.",
        )
    dtype, numpy_type = DTYPES[kind]
    num_bytes = math.prod(shape) * np.dtype(numpy_type).itemsize
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= body.size or end - begin != num_bytes:
        raise _damaged(
            path, f"{name} {list(shape)} {kind} lies at [{begin}, {end}) of {body.size} bytes"
        )
    try:
        array = body[begin:end].view(numpy_type).reshape(shape)
    except (ValueError, OverflowError) as error:  # empty, and of sizes that no array has
        raise _damaged(path, f"{name} has the shape {list(shape)}") from error
    return begin, StoredTensor(
        name=name,
        shape=shape,
        dtype=dtype,
        num_bytes=num_bytes,
        read=dense_reader(array),
        file=file,
    )


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a whole safetensors file: {what}.", remedy="Download the file again."
    )
