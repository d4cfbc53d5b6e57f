"""The driver's own library, NVML, by ctypes: names and memory of GPUs without touching them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96


class NvmlError(Exception):
    """The library answered with an error, or lacks a function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as the driver counts them, in the order of their PCI addresses.

    Attributes:
        index: In that order.
        uuid: Such as ``GPU-8d4f…``.
        name: What it is sold as.
        capability: Compute capability: (9, 0) is sm_90.
        memory_bytes: Its memory.
    """

    index: int
    uuid: str
    name: str
    capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver reports.

    Attributes:
        version: Such as ``580.82.07``.
        cuda: Newest CUDA that it supports.
        gpus: Its GPUs.
    """

    version: str
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


class _Memory(ctypes.Structure):
    _fields_ = (  # as in nvml.h, nvmlMemory_t
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def load_library() -> ctypes.CDLL | None:
    """Return the library, or None where no driver is installed."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


def read_driver(library: ctypes.CDLL) -> Driver:
    """Ask the driver what there is.

    Raises:
        NvmlError: With the library's own words.
    """
    with _session(library):
        count = ctypes.c_uint()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        cuda = ctypes.c_int()
        _call(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(cuda))
        gpus = tuple(_gpu(library, index) for index in range(count.value))
        version = _text(library, "nvmlSystemGetDriverVersion")
        return Driver(version, (cuda.value // 1000, cuda.value % 1000 // 10), gpus)


@contextlib.contextmanager
def _session(library: ctypes.CDLL) -> Iterator[None]:
    _call(library, "nvmlInit_v2")
    try:
        yield
    finally:
        _call(library, "nvmlShutdown")


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    handle = ctypes.c_void_p()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    memory, major, minor = _Memory(), ctypes.c_int(), ctypes.c_int()
    _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    _call(
        library,
        "nvmlDeviceGetCudaComputeCapability",
        handle,
        ctypes.byref(major),
        ctypes.byref(minor),
    )
    return Gpu(
        index=index,
        uuid=_text(library, "nvmlDeviceGetUUID", handle),
        name=_text(library, "nvmlDeviceGetName", handle),
        capability=(major.value, minor.value),
        memory_bytes=memory.total,
    )


def _text(library: ctypes.CDLL, function: str, *arguments: object) -> str:
    buffer = ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, function, *arguments, buffer, ctypes.c_uint(_NAME_BYTES))
    return buffer.value.decode(errors="replace")


def _call(library: ctypes.CDLL, function: str, *arguments: object) -> None:
    try:
        status = getattr(library, function)(*arguments)
    except AttributeError as error:
        raise NvmlError(f"{LIBRARY} has no {function}") from error
    if status != 0:
        library.nvmlErrorString.restype = ctypes.c_char_p
        words = library.nvmlErrorString(status) or b"unknown error"
        raise NvmlError(f"{function}: {words.decode(errors='replace')}")
