"""Collectives over the host's own network: slow, right, there for every device.

What a backend gets that offers no ``headstock_communication`` of its own. PyTorch's gloo meets by
a file and speaks over the loopback interface.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from headstock.errors import DeviceError
from headstock.plugins.hooks import GroupInfo

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 600.0
"""How long a rank waits for the others: loading is included. Seconds."""


class HostGroup:
    """Ranks on one host.

    Args:
        info: The ranks; the address is a ``file://`` in a directory that they share.
        timeout_s: How long a collective waits for the other ranks. Seconds.

    Raises:
        DeviceError: The others did not come in time.
    """

    is_capturable = False

    def __init__(self, info: GroupInfo, *, timeout_s: float = TIMEOUT_S) -> None:
        self.rank = info.rank
        self.size = info.size
        library: Any = dist  # whose stubs know little of gloo
        options = library.ProcessGroupGloo._Options()
        options._devices = [library.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
        options._timeout = timedelta(seconds=timeout_s)
        store = library.FileStore(info.address.removeprefix("file://"), info.size)
        store.set_timeout(timedelta(seconds=timeout_s))
        try:
            self._group = library.ProcessGroupGloo(store, info.rank, info.size, options)
        except RuntimeError as error:
            raise DeviceError(
                f"Rank {info.rank} could not join the {info.size} ranks of group {info.name!r}:"
                f" {error}.",
                remedy="See the other ranks' output above for what kept them.",
            ) from error

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks, in ``x`` if it is contiguous."""
        total = x.contiguous()
        self._wait(self._group.allreduce([total]))
        return total

    def all_gather(self, x_TC: Tensor) -> Tensor:
        """Return the ranks' tensors side by side, rank 0 first. [T, size * C]"""
        own_TC = x_TC.contiguous()
        parts = [torch.empty_like(own_TC) for _ in range(self.size)]
        self._wait(self._group.allgather([parts], [own_TC]))
        return torch.cat(parts, dim=-1)

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor, in ``x``, which must be contiguous."""
        assert x.is_contiguous(), f"broadcast of a strided tensor of shape {tuple(x.shape)}"
        self._wait(self._group.broadcast(x, 0))
        return x

    def close(self) -> None:
        """Leave: the other ranks' next collective fails."""
        del self._group

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise DeviceError(
                f"Rank {self.rank} lost the other ranks: {error}.",
                remedy="See their output above; the engine starts all of them again.",
            ) from error
