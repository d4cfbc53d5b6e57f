"""Reads the tensors of a file that torch wrote through a memory map, and runs nothing of it.

Such a file is a zip of raw storages and of a pickle that says which tensors lie in them; see
:mod:`headstock.checkpoint.torch_pickle` for how the pickle is read.

Source:
    PyTorch's notes on serialization on the zip's entries; PKWARE's APPNOTE, 4.3.7, on where an
    entry's bytes begin.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, dense_reader
from headstock.checkpoint.mapping import MappedFile
from headstock.checkpoint.torch_pickle import (
    Name,
    Rebuild,
    Storage,
    UnknownPickleError,
    describe_pickle,
)
from headstock.errors import CheckpointError

MAX_PICKLE_BYTES = 1 << 22
"""Some 20,000 tensors."""
MAX_DIRECTORY_BYTES = 1 << 23
"""Of the zip's list of entries, which is read whole: some 80,000 of them."""
MAX_DIMENSIONS = 8
LOCAL_HEADER_BYTES = 30
STORAGES: Mapping[str, tuple[str, type[np.generic]]] = {
    "torch DoubleStorage": ("float64", np.float64),
    "torch FloatStorage": ("float32", np.float32),
    "torch HalfStorage": ("float16", np.float16),
    "torch BFloat16Storage": ("bfloat16", np.uint16),
    "torch LongStorage": ("int64", np.int64),
    "torch IntStorage": ("int32", np.int32),
    "torch ShortStorage": ("int16", np.int16),
    "torch CharStorage": ("int8", np.int8),
    "torch ByteStorage": ("uint8", np.uint8),
    "torch BoolStorage": ("bool", np.bool_),
}
"""Kinds of storage to our dtype and the numpy type that holds the bits."""


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of ``path`` by name, in the order of the dict; rows are read later.

    Raises:
        CheckpointError: It is damaged, of an old format, or holds more than tensors.
    """
    file = MappedFile(path)
    try:
        with _BoundedFile(path) as stream, zipfile.ZipFile(stream) as archive:
            return _read(_Archive(file, archive))
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise _refused(
            path, f"is not a zip as torch.save writes since version 1.6 ({error})"
        ) from error
    except (ValueError, IndexError, TypeError) as error:
        raise _refused(path, f"holds something else than a dict of tensors: {error}") from error


class _BoundedFile(io.FileIO):
    """A file that gives so many bytes at a time that a zip's directory cannot fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Return as many bytes as are asked, or less at the end."""
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes; {MAX_DIRECTORY_BYTES} are read")
        return super().read(size)


@dataclass(frozen=True, slots=True)
class _Archive:
    """A zip, whose entries are views of a memory map.

    Attributes:
        file: The map.
        archive: Its directory.
    """

    file: MappedFile
    archive: zipfile.ZipFile

    def entry(self, name: str) -> Array:
        """Return an entry's bytes.

        Raises:
            KeyError: There is no such entry.
            UnknownPickleError: It is packed, or lies past the end of the file.
        """
        info = self.archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise UnknownPickleError(f"entry {name} is packed")
        data = self.file.data
        header = data[info.header_offset : info.header_offset + LOCAL_HEADER_BYTES].tobytes()
        if len(header) < LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
            raise UnknownPickleError(f"entry {name} is not where the directory says")
        lengths = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        begin = info.header_offset + LOCAL_HEADER_BYTES + sum(lengths)
        if begin + info.file_size > data.size:
            raise UnknownPickleError(f"entry {name} lies past the end of the file")
        return data[begin : begin + info.file_size]


def _read(archive: _Archive) -> dict[str, StoredTensor]:
    names = archive.archive.namelist()
    pickles = [name for name in names if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UnknownPickleError(f"{len(pickles)} entries data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in names and archive.entry(order)[:16].tobytes() != b"little":
        raise UnknownPickleError("another byte order than little")
    described = archive.entry(pickles[0])
    if described.size > MAX_PICKLE_BYTES:
        raise UnknownPickleError(f"a pickle of {described.size} bytes; {MAX_PICKLE_BYTES} are read")
    found = describe_pickle(described.tobytes())
    if not isinstance(found, dict):
        raise UnknownPickleError("no dict")
    entries = cast("dict[str, Any]", found).items()
    return {name: _tensor(archive, root, name, value) for name, value in entries}


def _tensor(archive: _Archive, root: str, name: str, value: Any) -> StoredTensor:
    """Return the tensor that a value of the pickle describes."""
    if not isinstance(value, Rebuild):
        raise UnknownPickleError(f"{name} is not a tensor")
    storage, offset, shape, stride = value.arguments[:4]
    if not isinstance(storage, Storage):
        raise UnknownPickleError(f"{name} has no storage")
    word, kind, key, _, _ = storage.place
    if word != "storage" or not isinstance(kind, Name) or not isinstance(key, str):
        raise UnknownPickleError(f"{name} has no storage")
    if kind.text not in STORAGES:
        raise UnknownPickleError(f"{name} has a {kind.text}")
    dtype, numpy_type = STORAGES[kind.text]
    if not _are_sizes((offset,)) or not _are_sizes(shape) or not _are_sizes(stride):
        raise UnknownPickleError(f"{name} has sizes that are none")
    if not _is_contiguous(shape, stride):
        raise UnknownPickleError(f"{name} has the shape {shape} and the strides {stride}")
    size, count = np.dtype(numpy_type).itemsize, math.prod(shape)
    raw = archive.entry(f"{root}data/{key}")
    if (offset + count) * size > raw.size:
        raise UnknownPickleError(f"{name} lies past the end of its storage")
    array = raw[offset * size : (offset + count) * size].view(numpy_type).reshape(shape)
    return StoredTensor(
        name=name,
        shape=shape,
        dtype=dtype,
        num_bytes=array.nbytes,
        read=dense_reader(array),
        file=archive.file,
    )


def _are_sizes(numbers: Any) -> bool:
    """Whether ``numbers`` is a tuple of a few whole numbers that an array's sizes can be."""
    if not isinstance(numbers, tuple):
        return False
    items = cast("tuple[Any, ...]", numbers)
    return len(items) <= MAX_DIMENSIONS and all(
        isinstance(item, int) and 0 <= item < 1 << 48 for item in items
    )


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what}.",
        remedy="Load it with torch and save it as safetensors: a dict of contiguous tensors.",
    )
