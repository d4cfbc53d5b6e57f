"""Captured steps: flat native programs, with PyTorch calls between where an op has no kernel."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headstock.errors import PluginError, UnsupportedError
from headstock_xeon.memory import Arena
from headstock_xeon.stream import INSTRUCTION_BYTES, Stream

READS_VALUES = frozenset({"_local_scalar_dense", "nonzero", "item", "equal", "is_nonzero"})
"""Calls that bring a value to the host, which a replay could not follow."""
MAKES_EMPTY = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


class NativeGraph:
    """A captured step.

    Attributes:
        runs: What replaying calls, in order.
        torch_calls: Names of the PyTorch calls among them: ops without a native kernel.
        num_instructions: Of the native programs.
    """

    def __init__(
        self,
        runs: Sequence[Callable[[], None]],
        torch_calls: Sequence[str],
        num_instructions: int,
        held: Iterable[object],
    ) -> None:
        self._runs = tuple(runs)
        self._held = tuple(held)
        self.torch_calls = tuple(torch_calls)
        self.num_instructions = num_instructions

    def replay(self) -> None:
        """Do the step again; it is done when this returns."""
        for run in self._runs:
            run()

    def measure(self) -> list[tuple[str, float]]:
        """Replay phase by phase; return each one's kernel and time. Seconds."""
        found: list[tuple[str, float]] = []
        for run in self._runs:
            if isinstance(run, NativeProgram):
                found += run.measure()
            else:
                run()
        return found


class NativeProgram:
    """Instructions that run in one call, without the interpreter lock."""

    def __init__(self, stream: Stream, instructions: bytes) -> None:
        calls, engine = stream.library.calls, stream.engine
        self._library = stream.library
        self._run = calls.hs_program_run
        self._engine = engine
        count = len(instructions) // INSTRUCTION_BYTES
        self.handle = calls.hs_program_new(engine, instructions, count)
        free = calls.hs_program_free
        weakref.finalize(self, _free_program, stream, free, self.handle).atexit = False

    def measure(self) -> list[tuple[str, float]]:
        """Run phase by phase; return each one's kernel and time. Seconds."""
        calls = self._library.calls
        count = calls.hs_program_phases(self.handle)
        seconds = (ctypes.c_double * count)()
        calls.hs_program_measure(self._engine, self.handle, seconds)
        names = [calls.hs_program_kernel(self.handle, phase) for phase in range(count)]
        return [
            (calls.hs_kernel_name(name).decode(), seconds[phase])
            for phase, name in enumerate(names)
        ]

    def __call__(self) -> None:
        """Run all of them."""
        if not self._run(self._engine, self.handle):
            raise PluginError(
                "There is no memory for a step's scratch.",
                remedy="Lower --memory-fraction or --chunked-prefill-size.",
            )


def _free_program(stream: Stream, free: Callable[[int, int], None], handle: int) -> None:
    if stream.engine:  # Else the device is closed, and its threads are gone.
        free(stream.engine, handle)


class TorchCall:
    """One PyTorch call of a step, repeated into the tensors that it made the first time."""

    def __init__(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], results: list[Tensor]
    ) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        self._results = results

    def __call__(self) -> None:
        """Compute again."""
        made = tree_leaves(self._function(*self._args, **self._kwargs))
        fresh = [leaf for leaf in made if isinstance(leaf, Tensor)]
        for result, tensor in zip(self._results, fresh, strict=True):
            if tensor.data_ptr() != result.data_ptr():
                result.copy_(tensor)


class Capture(TorchDispatchMode):
    """Takes down what a step does while it runs.

    Args:
        stream: Where native instructions come by.
        arena: Where the step's tensors come from.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep PyTorch from importing its compiler for our sake: over a second, 900 modules."""
        return False

    def __init__(self, stream: Stream, arena: Arena) -> None:
        super().__init__()
        self._stream = stream
        self._arena = arena
        self._pending = bytearray()
        self._runs: list[Callable[[], None]] = []
        self._held: dict[int, object] = {}
        self._torch_calls: list[str] = []
        self._num_instructions = 0

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
        return NativeGraph(
            self._runs, self._torch_calls, self._num_instructions, self._held.values()
        )

    def add(self, instruction: bytes, args: Sequence[object]) -> None:
        """Take down an instruction that has run, and keep alive what tensors it was given.

        But for those in the arena, results of the step itself: the next ones take their place.
        """
        for arg in args:
            if isinstance(arg, Tensor) and not self._arena.holds(arg.data_ptr()):
                self.hold(arg)
        self._pending += instruction
        self._num_instructions += 1

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the arena."""
        return self._arena.empty(shape, dtype)

    def hold(self, owner: object) -> None:
        """Keep ``owner`` alive as long as the graph."""
        self._held[id(owner)] = owner

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a PyTorch call; take it down unless it only looks at memory another way."""
        name = func._schema.name.removeprefix("aten::")
        if name in READS_VALUES:
            raise UnsupportedError(
                f"A captured step calls {name}, which reads a value on the host.",
                remedy="Serve with --no-graphs, and report which op does it.",
            )
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        writes = any(a.alias_info and a.alias_info.is_write for a in func._schema.arguments)
        if not writes and _are_views(tensors, (args, kwargs)):
            return made
        if name in MAKES_EMPTY:
            for tensor in tensors:
                self.hold(tensor)
            return made
        self._flush()
        self._runs.append(TorchCall(func, args, dict(kwargs or {}), tensors))
        self._torch_calls.append(name)
        return made

    def _flush(self) -> None:
        """End the native program at hand."""
        if self._pending:
            self._runs.append(NativeProgram(self._stream, bytes(self._pending)))
            self._pending.clear()


def _are_views(made: Sequence[Tensor], given: object) -> bool:
    """Whether all of ``made`` lie in memory of ``given``: nothing was computed."""
    known = {
        leaf.untyped_storage().data_ptr() for leaf in tree_leaves(given) if isinstance(leaf, Tensor)
    }
    return all(tensor.untyped_storage().data_ptr() in known for tensor in made)
