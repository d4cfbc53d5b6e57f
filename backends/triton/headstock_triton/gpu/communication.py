"""Collectives among the GPUs of one host: PyTorch's NCCL, which is RCCL in its builds for ROCm.

A decode step adds up a few kilobytes after every attention and feed-forward layer. The library's
kernels take twice as long there as the bytes need; a backend may bring one of its own for them.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

from headstock.errors import DeviceError

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.plugins.hooks import GroupInfo

TIMEOUT_S = 600.0
"""How long a rank waits for the others to join: loading is included. Seconds."""


class SmallSum(Protocol):
    """Adds up small tensors over the ranks, faster than the library."""

    def takes(self, x: Tensor) -> bool:
        """Say whether it adds up tensors such as ``x``, contiguous."""
        ...

    def add(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, in ``x``."""
        ...

    def stop(self) -> None:
        """End the waits of kernels for other ranks."""
        ...

    def close(self) -> None:
        """Give its memory back; nothing runs."""
        ...


OpenSmallSum = Callable[[Any, int, int, torch.device], SmallSum | None]
"""From a store with ``set`` and ``get``, the rank, their number and the GPU; None: not here."""


def no_small_sum(store: Any, rank: int, size: int, device: torch.device) -> SmallSum | None:
    """Leave all sums to the library."""
    return None


class GpuGroup:
    """Ranks on the GPUs of one host, a GPU each.

    Args:
        info: The ranks; the address is a ``file://`` in a directory that they share.
        device: This rank's GPU.
        open_small_sum: Connects what adds up small tensors.
        timeout_s: How long to wait for the other ranks. Seconds.

    Raises:
        DeviceError: The others did not come in time, or the GPUs cannot reach each other.
    """

    is_capturable = True

    def __init__(
        self,
        info: GroupInfo,
        device: torch.device,
        *,
        open_small_sum: OpenSmallSum = no_small_sum,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.rank = info.rank
        self.size = info.size
        self._device = device
        library: Any = dist  # whose stubs lack what a build without GPUs lacks
        store = library.FileStore(info.address.removeprefix("file://"), info.size)
        store.set_timeout(timedelta(seconds=timeout_s))
        options = library.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=timeout_s)
        try:
            nccl = library.PrefixStore("nccl", store)
            self._group = library.ProcessGroupNCCL(nccl, info.rank, info.size, options)
            self._group.eager_connect_single_device(device)
            small = library.PrefixStore("peers", store)
            self._small = open_small_sum(small, info.rank, info.size, device)
        except RuntimeError as error:
            raise DeviceError(
                f"Rank {info.rank} could not join the {info.size} ranks of group {info.name!r}:"
                f" {error}.",
                remedy="See the other ranks' output above for what kept them; NCCL_DEBUG=INFO has"
                " NCCL say more.",
            ) from error
        # On the current stream: a stream of NCCL's own costs two events a collective.
        binding: Any = import_module("torch._C._distributed_c10d")
        self._sum, self._gather, self._send = (
            binding.AllreduceOptions(),
            binding.AllgatherOptions(),
            binding.BroadcastOptions(),
        )
        for options in (self._sum, self._gather, self._send):
            options.asyncOp = False

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, in ``x`` if it is contiguous."""
        total = x.contiguous()
        if self._small is not None and self._small.takes(total):
            return self._small.add(total)
        self._wait(self._group.allreduce([total], self._sum))
        return total

    def all_gather(self, x_TC: Tensor) -> Tensor:
        """Return the ranks' tensors side by side, rank 0 first. [T, size * C]"""
        num_tokens, width = x_TC.shape
        found_NTC = x_TC.new_empty((self.size, num_tokens, width))
        self._wait(self._group._allgather_base(found_NTC, x_TC.contiguous(), self._gather))
        return found_NTC.transpose(0, 1).reshape(num_tokens, self.size * width)

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor, in ``x``, which must be contiguous."""
        assert x.is_contiguous(), f"broadcast of a strided tensor of shape {tuple(x.shape)}"
        self._wait(self._group.broadcast([x], self._send))
        return x

    def close(self) -> None:
        """Leave, also while a collective waits for a rank that is lost."""
        if self._small is not None:
            self._small.stop()
        self._group.abort()
        torch.cuda.synchronize(self._device)
        if self._small is not None:
            self._small.close()

    def _wait(self, work: dist.Work | None) -> None:
        """Have the current stream wait; the host does not."""
        try:
            if work is not None:
                work.wait()
        except RuntimeError as error:
            raise DeviceError(
                f"Rank {self.rank} lost the other ranks: {error}.",
                remedy="See their output above; the engine starts all of them again.",
            ) from error
