"""Where ops send their instructions: run at once, and recorded while a step is captured."""

from __future__ import annotations

import struct
from ctypes import addressof, create_string_buffer
from typing import Protocol

import torch
from torch import Tensor

from headstock.errors import PluginError
from headstock_xeon.native import MAX_ARGS, Library

WORDS = MAX_ARGS + 1
"""8-byte words of an instruction: the kernel's number, then its arguments."""
INSTRUCTION_BYTES = WORDS * 8
_PACKERS = [struct.Struct(f"<{1 + n}q").pack_into for n in range(MAX_ARGS + 1)]
_DOUBLE, _LONG = struct.Struct("<d"), struct.Struct("<q")


def as_bits(value: float) -> int:
    """Return the bits of a double, as instructions carry numbers that are not whole."""
    return _LONG.unpack(_DOUBLE.pack(value))[0]


class Recording(Protocol):
    """What a capture takes down."""

    def add(self, instruction: bytes) -> None:
        """Take down an instruction that has run."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory that stays the step's own."""
        ...

    def hold(self, owner: object) -> None:
        """Keep ``owner`` alive: instructions have addresses of its memory."""
        ...


class Stream:
    """The one queue of a device: nothing is ever under way when a call returns.

    Args:
        library: The kernels.
        engine: Handle of the native engine.
    """

    def __init__(self, library: Library, engine: int) -> None:
        self.library = library
        self.engine = engine
        self.recording: Recording | None = None
        self._buffer = create_string_buffer(INSTRUCTION_BYTES)
        self._address = addressof(self._buffer)
        self._run = library.calls.hs_run

    def kernel(self, name: str) -> int:
        """Return the number of a kernel, for :meth:`emit`."""
        return self.library.kernels[name]

    def emit(self, kernel: int, *args: int) -> None:
        """Run one instruction; while a step is captured, record it too.

        Raises:
            PluginError: There is no memory for its scratch.
        """
        _PACKERS[len(args)](self._buffer, 0, kernel, *args)
        if not self._run(self.engine, self._address, 1):
            raise PluginError(
                "There is no memory for a kernel's scratch.",
                remedy="Lower --memory-fraction or --chunked-prefill-size.",
            )
        if self.recording is not None:
            self.recording.add(self._buffer.raw)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uninitialised memory for a result."""
        if self.recording is not None:
            return self.recording.empty(shape, dtype)
        return torch.empty(shape, dtype=dtype)

    def hold(self, *owners: object) -> None:
        """While a step is captured: let it keep alive what is not a result of the step itself."""
        if self.recording is not None:
            for owner in owners:
                self.recording.hold(owner)


def rows_of(x: Tensor) -> Tensor:
    """Return ``x`` with contiguous rows: itself, nearly always."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
