"""Reads the tensors of a small file that torch wrote, and runs nothing of it.

Such a file is a zip of raw storages and of a pickle that says which tensors lie in them. The
pickle's opcodes are read as a list, as a disassembler does, and only those that describe a dict of
tensors are understood: names in it stay text, nothing is imported and nothing is called.

Source:
    Python's ``pickletools`` on opcodes; PyTorch's notes on serialization on the zip's entries.
"""

from __future__ import annotations

import io
import math
import pickletools  # nosec B403
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from headstock.checkpoint.files import StoredTensor, dense_reader
from headstock.errors import CheckpointError

MAX_BYTES = 1 << 28
"""Of a file: it is read whole."""
MAX_PICKLE_BYTES = 1 << 20
STORAGES: Mapping[str, tuple[str, type[np.generic]]] = {
    "torch FloatStorage": ("float32", np.float32),
    "torch HalfStorage": ("float16", np.float16),
    "torch BFloat16Storage": ("bfloat16", np.uint16),
}
"""Kinds of storage to our dtype and the numpy type that holds the bits."""
REBUILD = "torch._utils _rebuild_tensor_v2"
DICT = "collections OrderedDict"


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that the pickle has; what it stands for is never looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class _Call:
    """What the pickle wants called, with what; never is."""

    name: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Storage:
    """Where the pickle says that a tensor's numbers lie."""

    place: tuple[Any, ...]


class _Mark:
    """Where a tuple's or a dict's items begin on the stack."""


class _UnknownError(ValueError):
    """The pickle has something else than a dict of tensors."""


def read_torch_file(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of ``path`` by name.

    Raises:
        CheckpointError: It is damaged, too large, of an old format, or holds more than tensors.
    """
    if path.stat().st_size > MAX_BYTES:
        raise _refused(path, f"has {path.stat().st_size} bytes; {MAX_BYTES} are read at most")
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            return _read(path, archive)
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise _refused(path, f"is no zip that torch.save writes ({error})") from error
    except (_UnknownError, ValueError, IndexError, TypeError) as error:
        raise _refused(path, f"holds something else than a dict of tensors: {error}") from error


def _read(path: Path, archive: zipfile.ZipFile) -> dict[str, StoredTensor]:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise _UnknownError(f"{len(pickles)} entries data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist():
        order = _entry(archive, f"{root}byteorder", 16)
        if order != b"little":
            raise _UnknownError(f"byte order {order!r}")
    found = _interpret(_entry(archive, pickles[0], MAX_PICKLE_BYTES))
    if not isinstance(found, dict):
        raise _UnknownError("no dict")
    tensors: dict[str, StoredTensor] = {}
    for name, call in cast("dict[Any, Any]", found).items():
        if not isinstance(name, str) or not isinstance(call, _Call) or call.name != REBUILD:
            raise _UnknownError(f"entry {name!r} is no tensor")
        tensors[name] = _tensor(archive, root, name, call.arguments)
    return tensors


def _entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """Return an entry's bytes; a zip may claim to hold more than there is memory."""
    info = archive.getinfo(name)
    if info.file_size > most or info.compress_type != zipfile.ZIP_STORED:
        raise _UnknownError(f"entry {name} of {info.file_size} bytes, packed {info.compress_type}")
    return archive.read(info)


def _tensor(
    archive: zipfile.ZipFile, root: str, name: str, arguments: tuple[Any, ...]
) -> StoredTensor:
    """Return the tensor that the arguments of its making describe."""
    storage, offset, shape, stride = arguments[:4]
    if not isinstance(storage, _Storage) or storage.place[0] != "storage":
        raise _UnknownError(f"{name} has no storage")
    _, kind, key, _, _ = storage.place
    known = STORAGES.get(kind.name) if isinstance(kind, _Global) else None
    if known is None:
        raise _UnknownError(f"{name} has a storage {kind}")
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *stride)):
        raise _UnknownError(f"{name} has the shape {shape}")
    if not _is_contiguous(shape, stride):
        raise _UnknownError(f"{name} has the strides {stride}")
    dtype, numpy_type = known
    count = math.prod(shape)
    raw = bytearray(_entry(archive, f"{root}data/{key}", MAX_BYTES))  # torch wants it writable
    array = np.frombuffer(raw, numpy_type)[offset : offset + count]
    if array.size != count:
        raise _UnknownError(f"{name} lies past the end of its storage")
    return StoredTensor(
        name=name,
        shape=tuple(shape),
        dtype=dtype,
        num_bytes=array.nbytes,
        read=dense_reader(array.reshape(shape)),
    )


def _is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


def _interpret(data: bytes) -> Any:
    """Return what a pickle describes: dicts, tuples, numbers, text, and calls that are not made."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]  # pyright: ignore[reportArgumentType]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])  # pyright: ignore[reportArgumentType]
        elif name in _PLAIN:
            stack.append(argument)
        elif name in _ACTIONS:
            _ACTIONS[name](stack, argument)
        elif name != "PROTO":
            raise _UnknownError(f"opcode {name}")
    raise _UnknownError("no end")


def _pop_marked(stack: list[Any]) -> list[Any]:
    """Take what lies above the last mark, and the mark."""
    items: list[Any] = []
    while not isinstance(item := stack.pop(), _Mark):
        items.append(item)
    return items[::-1]


def _pop_tuple(size: int) -> Callable[[list[Any], Any], None]:
    def pop(stack: list[Any], argument: Any) -> None:
        items = tuple(stack.pop() for _ in range(size))
        stack.append(items[::-1])

    return pop


def _reduce(stack: list[Any], argument: Any) -> None:
    arguments, called = stack.pop(), stack.pop()
    if not isinstance(called, _Global) or not isinstance(arguments, tuple):
        raise _UnknownError("a call of no name")
    if called.name == DICT:
        stack.append({})
    elif called.name == REBUILD:
        stack.append(_Call(called.name, cast("tuple[Any, ...]", arguments)))
    else:
        raise _UnknownError(f"a call of {called.name}")


def _set_items(stack: list[Any], argument: Any) -> None:
    items = _pop_marked(stack)
    _into(stack, items)


def _set_item(stack: list[Any], argument: Any) -> None:
    value, key = stack.pop(), stack.pop()
    _into(stack, [key, value])


def _into(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], dict):
        raise _UnknownError("items of no dict")
    found = cast("dict[Any, Any]", stack[-1])
    found.update(zip(items[::2], items[1::2], strict=True))


_PLAIN = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"})
_ACTIONS: Mapping[str, Callable[[list[Any], Any], None]] = {
    "MARK": lambda stack, _: stack.append(_Mark()),
    "GLOBAL": lambda stack, name: stack.append(_Global(name)),
    "BINPERSID": lambda stack, _: stack.append(_Storage(tuple(stack.pop()))),
    "NEWTRUE": lambda stack, _: stack.append(True),
    "NEWFALSE": lambda stack, _: stack.append(False),
    "NONE": lambda stack, _: stack.append(None),
    "EMPTY_DICT": lambda stack, _: stack.append({}),
    "EMPTY_TUPLE": lambda stack, _: stack.append(()),
    "TUPLE": lambda stack, _: stack.append(tuple(_pop_marked(stack))),
    "TUPLE1": _pop_tuple(1),
    "TUPLE2": _pop_tuple(2),
    "TUPLE3": _pop_tuple(3),
    "REDUCE": _reduce,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "BUILD": lambda stack, _: stack.pop(),  # what a dict has beside its items: versions of modules
}
"""What each opcode does to the stack."""


def _refused(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} {what}.",
        remedy="Save a dict of contiguous tensors, and nothing else, with torch.save.",
    )
