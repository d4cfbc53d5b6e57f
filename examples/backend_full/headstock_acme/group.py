"""Collectives of the ranks that share a model."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from headstock.errors import DeviceError
from headstock.plugins.hooks import GroupInfo

LIBRARY = "gloo"
"""What PyTorch calls the library that the ranks speak through."""
TIMEOUT_S = 600
"""How long a rank waits for the others: loading is included. Seconds."""


class AcmeGroup:
    """Ranks that hold slices of the same layers; all of them call the same things in order."""

    is_capturable = False

    def __init__(self, info: GroupInfo) -> None:
        self.rank, self.size = info.rank, info.size
        path = info.address.removeprefix("file://")
        store = dist.FileStore(path, info.size)
        options = {"rank": info.rank, "world_size": info.size, "store": store}
        try:
            dist.init_process_group(LIBRARY, timeout=timedelta(seconds=TIMEOUT_S), **options)
        except RuntimeError as error:
            raise DeviceError(
                f"Rank {info.rank} of {info.size} could not join group {info.name!r}: {error}.",
                remedy="See the other ranks' output above for what kept them.",
            ) from error

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks: added in their order, in float32, rounded once."""
        return torch.stack(self._gathered(x)).float().sum(dim=0).to(x.dtype)

    def all_gather(self, x_TC: Tensor) -> Tensor:
        """Return the ranks' columns side by side, rank 0 first. [T, size * C]"""
        return torch.cat(self._gathered(x_TC), dim=-1)

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor, in ``x``."""
        dist.broadcast(x, 0)
        return x

    def close(self) -> None:
        """Leave."""
        dist.destroy_process_group()

    def _gathered(self, x: Tensor) -> list[Tensor]:
        own = x.contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own)
        return parts
