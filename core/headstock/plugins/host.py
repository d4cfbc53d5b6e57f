"""The host's processor as a device: memory is RAM, steps run as they are queued, no graphs."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from headstock.plugins.device import DeviceFacts, Graph, GraphKey, Memory

if TYPE_CHECKING:
    from torch import Tensor

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""What a container may use: bytes, or ``max``. Absent outside of Linux."""
PEAK_RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class EagerPolicy:
    """Captures nothing."""

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        """Return None: steps run at their own size."""
        return None

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        """Return nothing."""
        return []


class Arrived:
    """A transfer that was over when it began."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def wait(self) -> Tensor:
        """Return the host tensor."""
        return self._tensor


class HostDevice:
    """The host's processor; also what a backend for a CPU can inherit from.

    Args:
        num_threads: Threads that PyTorch computes with; 0: its own choice.
    """

    facts = DeviceFacts(
        shares_host_memory=True,
        default_slots=64,
        default_step_tokens=512,
        has_strided_pages=True,
        captures_on_use=True,
        gives_memory_back=True,
    )
    depth = 1
    default_dtype: torch.dtype | None = torch.float32

    def __init__(self, *, num_threads: int = 0) -> None:
        self.torch_device = torch.device("cpu")
        self.capabilities: frozenset[str] = frozenset()
        self.graph_policy = EagerPolicy()
        if num_threads:
            torch.set_num_threads(num_threads)

    @property
    def name(self) -> str:
        """Architecture and threads."""
        return f"host {platform.machine()}, {self.num_threads} threads"

    @property
    def num_threads(self) -> int:
        """Threads that PyTorch computes with."""
        return torch.get_num_threads()

    def memory(self) -> Memory:
        """Read RAM figures; a container's limit counts as all there is."""
        resident = psutil.Process().memory_info().rss
        ram = psutil.virtual_memory()
        limit = _memory_limit()
        if limit is None or limit >= ram.total:
            return Memory(total=ram.total, free=ram.available, peak=_peak(resident))
        free = max(0, min(ram.available, limit - resident))
        return Memory(total=limit, free=free, peak=_peak(resident))

    def reset_peak(self) -> None:
        """Start a new measurement where the system can; elsewhere the peak is of the whole run."""
        try:
            PEAK_RESET.write_text("5")
        except OSError:
            return

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory."""
        return torch.empty(shape, dtype=dtype)

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return zeroed memory."""
        return torch.zeros(shape, dtype=dtype)

    def fetch(self, source: Tensor, into: Tensor) -> Arrived:
        """Copy now."""
        if _are_alike(source, into):
            # Not through PyTorch: after a step its dispatcher is no longer in the caches.
            ctypes.memmove(into.data_ptr(), source.data_ptr(), into.nbytes)
            return Arrived(into)
        return Arrived(into.copy_(source))

    def capture(self, key: GraphKey, step: Callable[[], None]) -> Graph:
        """Refuse: the policy gives no bucket, so this is never called."""
        raise AssertionError(f"{key} was to be captured on a device whose policy captures nothing")

    def cut(self) -> None:
        """Do nothing: what is asked for runs at once."""

    def trim(self) -> None:
        """Do nothing: large tensors have mappings of their own, which go with them."""

    def synchronize(self) -> None:
        """Do nothing: nothing is ever under way."""

    def close(self) -> None:
        """Do nothing: memory goes with its tensors."""


def _are_alike(a: Tensor, b: Tensor) -> bool:
    """Whether their bytes are laid out alike, without gaps."""
    return a.dtype == b.dtype and a.shape == b.shape and a.is_contiguous() and b.is_contiguous()


def _memory_limit() -> int | None:
    try:
        text = MEMORY_LIMIT.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _peak(resident: int) -> int:
    """Return the most RAM this process had; what it has now where the system keeps no record."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return resident
    kilobytes = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return max(resident, int(kilobytes[0]) * 1024) if kilobytes else resident
