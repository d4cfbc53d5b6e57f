"""Where ops send their instructions: run at once, and recorded while a step is captured."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ctypes import addressof, create_string_buffer
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from headstock.errors import PluginError
from headstock_xeon.native import MAX_ARGS, Library

if TYPE_CHECKING:
    from headstock_xeon.graph import Capture

WORDS = MAX_ARGS + 1
"""8-byte words of an instruction: the kernel's number, then its arguments."""
INSTRUCTION_BYTES = WORDS * 8
_PACKERS = [struct.Struct(f"<{1 + n}q").pack_into for n in range(MAX_ARGS + 1)]


def as_bits(value: float) -> int:
    """Return the bits of a double, as instructions carry numbers that are not whole."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


Word = Tensor | int | None
"""What an instruction is given: a tensor stands for its address, None for an address of nothing."""


class Stream:
    """The one queue of a device: nothing is ever under way when a call returns.

    Args:
        library: The kernels.
        engine: Handle of the native engine.
    """

    def __init__(self, library: Library, engine: int) -> None:
        self.library = library
        self.engine = engine
        self.recording: Capture | None = None
        self._buffer = create_string_buffer(INSTRUCTION_BYTES)
        self._address = addressof(self._buffer)
        self._run = library.calls.hs_run
        self._numbers = library.kernels
        self._blanks: dict[torch.dtype, Tensor] = {}

    def emit(self, kernel: str, *args: Word) -> None:
        """Run one instruction, ``args`` in the kernel's order; while a step is captured, record it.

        Tensors stay alive as long as the recording does.

        Raises:
            PluginError: There is no memory for its scratch.
        """
        words = [x if type(x) is int else 0 if x is None else x.data_ptr() for x in args]  # pyright: ignore[reportAttributeAccessIssue]
        self.emit_words(kernel, args, *words)

    def emit_words(self, kernel: str, given: Sequence[Word], *words: int) -> None:
        """Run one instruction, as :meth:`emit` does, whose words the caller has: the quick way.

        A prompt's step runs kernel by kernel, and finding the words of one costs as much as the
        rest of this: kernels that each layer runs have them at hand.

        Args:
            kernel: Its name.
            given: What the words are addresses of; stays alive as long as a recording does.
            words: Of the instruction, in the kernel's order.

        Raises:
            PluginError: There is no memory for its scratch.
        """
        _PACKERS[len(words)](self._buffer, 0, self._numbers[kernel], *words)
        if not self._run(self.engine, self._address, 1):
            raise no_scratch()
        if self.recording is not None:
            self.recording.add(self._buffer.raw, given)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uninitialised memory for a result."""
        if self.recording is not None:
            return self.recording.empty(shape, dtype)
        blank = self._blanks.get(dtype)
        if blank is None:
            blank = self._blanks[dtype] = torch.empty(0, dtype=dtype)
        return blank.new_empty(shape)  # a fifth quicker than to name the dtype each time

    def hold(self, *owners: object) -> None:
        """While a step is captured: keep alive in it what its instructions know by number."""
        if self.recording is not None:
            for owner in owners:
                self.recording.hold(owner)


def no_scratch() -> PluginError:
    """Return the error of a native call that had no memory to work in."""
    return PluginError(
        "There is no memory for a kernel's scratch.",
        remedy="Lower --memory-fraction or --chunked-prefill-size.",
    )


def rows_of(x: Tensor) -> Tensor:
    """Return ``x`` with contiguous rows: itself, nearly always."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def address(x: Tensor | None) -> int:
    """Return where ``x`` begins; of None, 0."""
    return 0 if x is None else x.data_ptr()


@overload
def strided(x: Tensor) -> tuple[Tensor, int]: ...


@overload
def strided(x: Tensor | None) -> tuple[Tensor | None, int]: ...


def strided(x: Tensor | None) -> tuple[Tensor | None, int]:
    """Return rows, contiguous each, and the numbers from one to the next; of None, 0. [R, A]"""
    if x is None:
        return None, 0
    step, between = x.stride()
    if between != 1 and x.shape[-1] != 1:
        return strided(x.contiguous())
    return x, step
