"""A GPU in use through PyTorch: memory, capture, and copies to the host.

PyTorch's builds for CUDA and for ROCm have one interface, ``torch.cuda``, and one device type.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from headstock.plugins.device import DeviceFacts, GraphKey, Memory
from headstock_triton.gpu.graphs import BucketPolicy

if TYPE_CHECKING:
    from torch import Tensor


class CapturedStep:
    """A step as a graph of the driver's."""

    def __init__(self, graph: torch.cuda.CUDAGraph) -> None:
        self._graph = graph

    def replay(self) -> None:
        """Queue it on the current stream."""
        self._graph.replay()


class HostCopy:
    """A copy to pinned memory on the side stream. Keeps its source alive until it is waited for."""

    def __init__(self, source: Tensor, into: Tensor, done: torch.cuda.Event) -> None:
        self._source: Tensor | None = source
        self._into = into
        self._done = done

    def wait(self) -> Tensor:
        """Wait for the copy alone, not for what was queued after it."""
        self._done.synchronize()
        self._source = None
        return self._into


class Gpu:
    """One GPU.

    Args:
        index: Which one, among those that the driver shows.
        name: What people call it.
        capabilities: What kernels may ask of it.
    """

    num_threads = 1
    facts = DeviceFacts(
        default_slots=512,
        default_step_tokens=8192,
        has_strided_pages=True,
        gives_memory_back=True,
    )
    depth = 2
    default_dtype: torch.dtype | None = None

    def __init__(self, index: int, name: str, capabilities: frozenset[str]) -> None:
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self.name = name
        self.capabilities = capabilities
        self.graph_policy = BucketPolicy()
        self._copies = torch.cuda.Stream(self.torch_device)
        self._captures = torch.cuda.Stream(self.torch_device)
        self._pool: Any = None
        self._keeper: torch.cuda.CUDAGraph | None = None

    def memory(self) -> Memory:
        """Read the card's figures; what PyTorch keeps for reuse counts as free."""
        free, total = torch.cuda.mem_get_info(self.torch_device)
        held = torch.cuda.memory_reserved(self.torch_device)
        used = torch.cuda.memory_allocated(self.torch_device)
        peak = torch.cuda.max_memory_allocated(self.torch_device)
        return Memory(total=total, free=free + held - used, peak=peak)

    def reset_peak(self) -> None:
        """Start a new measurement of the peak, of what tensors took."""
        torch.cuda.reset_peak_memory_stats(self.torch_device)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory of the card."""
        return torch.empty(shape, dtype=dtype, device=self.torch_device)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return zeroed page-locked memory."""
        return torch.zeros(shape, dtype=dtype, pin_memory=True)

    def fetch(self, source: Tensor, into: Tensor) -> HostCopy:
        """Copy on a stream of its own, after what is queued now; later steps do not wait for it.

        ``source`` must not be written to before the copy is waited for.
        """
        self._copies.wait_stream(torch.cuda.current_stream(self.torch_device))
        with torch.cuda.stream(self._copies):
            into.copy_(source, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._copies)
        return HostCopy(source, into, done)

    def capture(self, key: GraphKey, step: Callable[[], None]) -> CapturedStep:
        """Run ``step``, which compiles its kernels, then record it; all graphs share one pool.

        Sharing is right since graphs run one after another and nothing but the runner's own
        buffers outlives a replay.
        """
        step()
        torch.cuda.synchronize(self.torch_device)
        if self._pool is None:
            self._open_pool()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._captures):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            step()
            graph.capture_end()
        return CapturedStep(graph)

    def _open_pool(self) -> None:
        """Make the pool that graphs share, and a graph that keeps it when all others have gone."""
        self._pool = torch.cuda.graph_pool_handle()
        self._keeper = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._captures):
            self._keeper.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            torch.empty(1, device=self.torch_device).zero_()
            self._keeper.capture_end()

    def cut(self) -> None:
        """Do nothing: what is queued runs in order, without waiting for what follows."""

    def synchronize(self) -> None:
        """Wait for everything queued on this card."""
        torch.cuda.synchronize(self.torch_device)

    def trim(self) -> None:
        """Give memory that is kept for reuse, and the graphs' pool, back to the driver."""
        self.close()

    def close(self) -> None:
        """Wait, and give memory that is kept for reuse back to the driver."""
        torch.cuda.synchronize(self.torch_device)
        self._pool = self._keeper = None
        torch.cuda.empty_cache()
