"""Captured steps: flat native programs, with PyTorch calls between where an op has no kernel."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headstock.plugins.arena import StepArena
from headstock.plugins.captures import TorchCall, TorchCapture
from headstock_xeon.stream import INSTRUCTION_BYTES, Stream, no_scratch


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class NativeGraph:
    """A captured step.

    Attributes:
        runs: What replaying calls, in order.
        torch_calls: Names of the PyTorch calls among them: ops without a native kernel.
        num_instructions: Of the native programs.
        held: What the instructions have addresses of.
    """

    runs: tuple[Callable[[], None], ...]
    torch_calls: tuple[str, ...]
    num_instructions: int
    held: tuple[object, ...]

    def replay(self) -> None:
        """Do the step again; it is done when this returns."""
        for run in self.runs:
            run()


class NativeProgram:
    """Instructions that run in one call, without the interpreter lock."""

    def __init__(self, stream: Stream, instructions: bytes) -> None:
        calls, engine = stream.library.calls, stream.engine
        self._run = calls.hs_program_run
        self._engine = engine
        count = len(instructions) // INSTRUCTION_BYTES
        self.handle = calls.hs_program_new(engine, instructions, count)
        free = calls.hs_program_free
        weakref.finalize(self, _free_program, stream, free, self.handle).atexit = False

    def __call__(self) -> None:
        """Run all of them."""
        if not self._run(self._engine, self.handle):
            raise no_scratch()


def _free_program(stream: Stream, free: Callable[[int, int], None], handle: int) -> None:
    if stream.engine:  # Else the device is closed, and its threads are gone.
        free(stream.engine, handle)


class Capture(TorchCapture):
    """Takes down what a step does while it runs.

    Args:
        stream: Where native instructions come by.
        arena: Where the step's tensors come from.
    """

    def __init__(self, stream: Stream, arena: StepArena) -> None:
        super().__init__()
        self._stream = stream
        self._arena = arena
        self._pending = bytearray()
        self._runs: list[Callable[[], None]] = []
        self._held: dict[int, object] = {}
        self._torch_calls: list[str] = []
        self._count = 0

    def record(self, step: Callable[[], None]) -> NativeGraph:
        """Run ``step`` and return it as a graph.

        Raises:
            UnsupportedError: The step reads a value on the host.
        """
        assert self._stream.recording is None, "a step is captured within another"
        self._stream.recording = self
        try:
            with self:
                step()
        finally:
            self._stream.recording = None
        self._flush()
        held = tuple(self._held.values())
        return NativeGraph(tuple(self._runs), tuple(self._torch_calls), self._count, held)

    def add(self, instruction: bytes, args: Sequence[object]) -> None:
        """Take down an instruction that has run, and keep alive what tensors it was given.

        But for those in the arena, results of the step itself: the next ones take their place.
        """
        for arg in args:
            if isinstance(arg, Tensor) and not self._arena.holds(arg.data_ptr()):
                self.hold(arg)
        self._pending += instruction
        self._count += 1

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the arena, which stays the step's own."""
        return self._arena.empty(shape, dtype)

    def hold(self, owner: object) -> None:
        """Keep ``owner`` alive as long as the graph."""
        self._held[id(owner)] = owner

    def keep(self, call: TorchCall) -> None:
        """Take down a PyTorch call, after a program of the instructions before it."""
        self._flush()
        self._runs.append(call)
        self._torch_calls.append(call.name)

    def _flush(self) -> None:
        """End the native program at hand."""
        if self._pending:
            self._runs.append(NativeProgram(self._stream, bytes(self._pending)))
            self._pending.clear()
