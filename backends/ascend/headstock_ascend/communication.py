"""Collectives among the NPUs of one host, by HCCL."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from headstock.errors import DeviceError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from headstock.plugins.hooks import GroupInfo

TIMEOUT_S = 600.0
"""How long a rank waits for the others to join: loading is included. Seconds."""

Connect = Callable[[Any, "GroupInfo", "torch.device", timedelta], Any]
"""From a store where ranks meet to PyTorch's process group, as its library makes it."""


def connect_hccl(
    store: Any, info: GroupInfo, device: torch.device, timeout: timedelta
) -> dist.Backend:
    """Join by HCCL."""
    hccl: Any = import_module("torch_npu._C._distributed_c10d").ProcessGroupHCCL
    options = hccl.Options()
    options._timeout = timeout
    group = hccl(store, info.rank, info.size, options)
    group.eager_connect_single_device(device)
    return group


class HcclGroup:
    """Ranks on the NPUs of one host, an NPU each.

    Args:
        info: The ranks; the address is a ``file://`` in a directory that they share.
        device: This rank's NPU.
        connect: Makes the process group.
        timeout_s: How long to wait for the other ranks. Seconds.

    Raises:
        DeviceError: The others did not come in time, or the NPUs cannot reach each other.
    """

    is_capturable = True

    def __init__(
        self,
        info: GroupInfo,
        device: torch.device,
        *,
        connect: Connect = connect_hccl,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.rank = info.rank
        self.size = info.size
        library: Any = dist  # whose stubs lack what some builds lack
        store = library.FileStore(info.address.removeprefix("file://"), info.size)
        timeout = timedelta(seconds=timeout_s)
        store.set_timeout(timeout)
        try:
            self._group = connect(store, info, device, timeout)
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
        num_tokens, width = x_TC.shape
        found = x_TC.new_empty((self.size * num_tokens, width))
        self._wait(self._group._allgather_base(found, x_TC.contiguous()))
        found_NTC = found.unflatten(0, (self.size, num_tokens))
        return found_NTC.transpose(0, 1).reshape(num_tokens, self.size * width)

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor, in ``x``, which must be contiguous."""
        assert x.is_contiguous(), f"broadcast of a strided tensor of shape {tuple(x.shape)}"
        self._wait(self._group.broadcast([x]))
        return x

    def close(self) -> None:
        """Leave, also while a collective waits for a rank that is lost."""
        self._group.abort()

    def _wait(self, work: dist.Work) -> None:
        """Have the current stream wait; the host does not."""
        try:
            work.wait()
        except RuntimeError as error:
            raise DeviceError(
                f"Rank {self.rank} lost the other ranks: {error}.",
                remedy="See their output above; the engine starts all of them again.",
            ) from error
