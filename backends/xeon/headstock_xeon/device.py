"""The processor as a device: threads of its own, steps as native programs."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from headstock.errors import UnsupportedError
from headstock.plugins.arena import StepArena, tensor_at
from headstock.plugins.cores import memory_nodes, num_compute_threads
from headstock.plugins.device import Graph, GraphKey
from headstock.plugins.host import EagerPolicy, HostDevice
from headstock_xeon.graph import Capture
from headstock_xeon.native import FEATURES, MEASURED, MODEL, Library
from headstock_xeon.stream import Stream

if TYPE_CHECKING:
    from torch import Tensor

SPIN_US = 100
"""How long helper threads look for the next job before they sleep. Microseconds."""
LARGE_BYTES = 1 << 20
"""Tensors from this on lie in huge pages."""
EXACT_TOKENS = 64
"""Decode steps up to this run at their own size: a capture costs about one eager step."""


class ProgramPolicy(EagerPolicy):
    """Decode steps are captured, each size when it is first met: none before.

    Larger ones are padded, so that a busy server does not capture every size there is. Ragged
    steps run eagerly: their sizes hardly repeat, padding costs more than the calls it would save.
    """

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        """Return the padded size of a decode step, None for others."""
        if not is_uniform:
            return None
        unit = 1 if num_tokens <= EXACT_TOKENS else 16 if num_tokens <= 256 else 32
        padded = -(-num_tokens // unit) * unit
        return padded, padded


class XeonDevice(HostDevice):
    """An x86-64 processor with AVX2.

    Args:
        name: What people call it.
        library: The native kernels.
        num_threads: Threads to compute with; 0: one a core.
        features: Instruction sets to use, as a sum of bits; None: all there are. Those that the
            processor lacks need :data:`headstock_xeon.native.MODEL`. With
            :data:`headstock_xeon.native.MEASURED` products have the kernels that are quickest here.
    """

    def __init__(
        self, name: str, library: Library, *, num_threads: int = 0, features: int | None = None
    ) -> None:
        self._num_threads = num_threads or num_compute_threads()
        super().__init__(num_threads=self._num_threads)
        self._name = name
        self.features = library.features if features is None else features
        self.capabilities = library.capabilities(self.features)
        self.graph_policy = ProgramPolicy()
        lacking = self.features & ~(library.features | MEASURED)
        assert not lacking or self.features & MODEL, f"no instruction sets {lacking:#x} here"
        engine = library.calls.hs_open(self._num_threads, SPIN_US, self.features)
        cores = memory_nodes().in_order
        if len(cores) >= self._num_threads:
            cpus = (ctypes.c_int64 * len(cores))(*cores)
            library.calls.hs_bind(engine, cpus, len(cores))
        self.library = library
        self.stream = Stream(library, engine)
        self._arena = StepArena(library.calls.hs_pages_new, library.calls.hs_pages_free)

    @property
    def name(self) -> str:
        """Model, threads and the best instruction set in use."""
        best = [name for name, bit in FEATURES.items() if self.features & bit]
        return f"{self._name}, {self._num_threads} threads, {best[-1]}"

    @property
    def num_threads(self) -> int:
        """Threads that kernels run on."""
        return self._num_threads

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory as long as the tensor lives: zeroed, in huge pages, where it is large.

        Raises:
            UnsupportedError: The system has not that much.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < LARGE_BYTES:
            return torch.empty(shape, dtype=dtype)
        calls = self.library.calls
        address = calls.hs_pages_new(num_bytes)
        if not address:
            raise UnsupportedError(
                f"There is no room for {num_bytes / 2**30:.2f} GiB more.",
                remedy="Lower --cache-tokens or --memory-fraction, or serve a smaller model.",
            )
        return tensor_at(address, shape, dtype, lambda: calls.hs_pages_free(address, num_bytes))

    def capture(self, key: GraphKey, step: Callable[[], None]) -> Graph:
        """Run ``step`` and return it as a native program."""
        return Capture(self.stream, self._arena).record(step)

    def close(self) -> None:
        """End the threads and free the arena; nothing of the device may be used after."""
        if self.stream.engine:
            self.library.calls.hs_close(self.stream.engine)
            self.stream.engine = 0
            self._arena.close()
