"""An NPU in use: memory, copies to the host, and captured steps whose lengths are updated.

Everything of the driver comes through ``npu``, which is ``torch.npu`` as torch-npu fills it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from headstock.plugins.device import DeviceFacts, GraphKey, Memory
from headstock_ascend.policy import DecodePolicy

if TYPE_CHECKING:
    from torch import Tensor

Updates = dict[str, list[int]]
"""Plain numbers of one call of attention, by the names of its arguments."""
UpdatesOf = Callable[[], Updates]
"""Says what those are of the step that was planned last."""


class CapturedStep:
    """A step as an NPUGraph. Its calls of attention have the rows' lengths as plain numbers.

    They are put in anew before each replay. That is safe with one step at a time: a graph is not
    running when it is updated.
    """

    def __init__(self, graph: Any, updates: list[UpdatesOf]) -> None:
        self._graph = graph
        self._updates = updates

    def replay(self) -> None:
        """Queue it on the current stream."""
        if self._updates:
            self._graph.update(cpu_update_input=[known() for known in self._updates])
        self._graph.replay()


class HostCopy:
    """A copy to pinned memory on the side stream. Keeps its source alive until it is waited for."""

    def __init__(self, source: Tensor, into: Tensor, done: Any) -> None:
        self._source: Tensor | None = source
        self._into = into
        self._done = done

    def wait(self) -> Tensor:
        """Wait for the copy alone, not for what was queued after it."""
        self._done.synchronize()
        self._source = None
        return self._into


class AscendDevice:
    """One NPU.

    Args:
        npu: ``torch.npu``.
        torch_device: Which one.
        name: What people call it.
        capabilities: What kernels may ask of it.
    """

    num_threads = 1
    facts = DeviceFacts(default_slots=256, default_step_tokens=8192, needs_host_lengths=True)
    depth = 1
    default_dtype: torch.dtype | None = None

    def __init__(
        self, npu: Any, torch_device: torch.device, name: str, capabilities: frozenset[str]
    ) -> None:
        self._npu = npu
        self.torch_device = torch_device
        self.name = name
        self.capabilities = capabilities
        self.graph_policy = DecodePolicy()
        npu.set_device(torch_device)
        self._copies = npu.Stream(torch_device)
        self._captures = npu.Stream(torch_device)
        self._pool: Any = None
        self._keeper: Any = None
        self._noted: list[UpdatesOf] | None = None

    def memory(self) -> Memory:
        """Read the card's figures; what PyTorch keeps for reuse counts as free."""
        free, total = self._npu.mem_get_info(self.torch_device)
        held = self._npu.memory_reserved(self.torch_device)
        used = self._npu.memory_allocated(self.torch_device)
        peak = self._npu.max_memory_allocated(self.torch_device)
        return Memory(total=total, free=free + held - used, peak=peak)

    def reset_peak(self) -> None:
        """Start a new measurement of the peak, of what tensors took."""
        self._npu.reset_peak_memory_stats(self.torch_device)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory of the card."""
        return torch.empty(shape, dtype=dtype, device=self.torch_device)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return zeroed page-locked memory."""
        return torch.zeros(shape, dtype=dtype, pin_memory=self.torch_device.type != "cpu")

    def fetch(self, source: Tensor, into: Tensor) -> HostCopy:
        """Copy on a stream of its own, after what is queued now.

        ``source`` must not be written to before the copy is waited for.
        """
        self._copies.wait_stream(self._npu.current_stream(self.torch_device))
        with self._npu.stream(self._copies):
            into.copy_(source, non_blocking=True)
            done = self._npu.Event()
            done.record(self._copies)
        return HostCopy(source, into, done)

    def note_updates(self, known: UpdatesOf) -> None:
        """Take note, while a step is captured, of who knows the numbers of a call of attention.

        Once for each call, in their order.
        """
        if self._noted is not None:
            self._noted.append(known)

    def capture(self, key: GraphKey, step: Callable[[], None]) -> CapturedStep:
        """Run ``step``, which loads its kernels, then record it; all graphs share one pool.

        Sharing is right since graphs run one after another and nothing but the runner's own
        buffers outlives a replay.
        """
        step()
        self._npu.synchronize(self.torch_device)
        if self._pool is None:
            self._open_pool()
        self._noted = noted = []
        try:
            graph = self._record(step)
        finally:
            self._noted = None
        return CapturedStep(graph, noted)

    def _record(self, step: Callable[[], object]) -> Any:
        graph = self._npu.NPUGraph()
        with self._npu.graph(
            graph,
            pool=self._pool,
            stream=self._captures,
            auto_dispatch_capture=True,
            capture_error_mode="thread_local",
        ):
            step()
        return graph

    def _open_pool(self) -> None:
        """Make the pool that graphs share, and a graph that keeps it when all others have gone."""
        self._pool = self._npu.graph_pool_handle()
        self._keeper = self._record(lambda: self.empty((1,), torch.int32).zero_())

    def cut(self) -> None:
        """Do nothing: what is queued runs in order, without waiting for what follows."""

    def trim(self) -> None:
        """Do nothing: its facts promise nothing."""

    def synchronize(self) -> None:
        """Wait for everything queued on this card."""
        self._npu.synchronize(self.torch_device)

    def close(self) -> None:
        """Wait, and give memory that is kept for reuse back to the driver."""
        self._npu.synchronize(self.torch_device)
        self._pool = self._keeper = None
        self._npu.empty_cache()
