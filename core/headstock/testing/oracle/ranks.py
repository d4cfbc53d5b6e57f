"""Ranks as threads of one process: collectives through shared lists and a barrier."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class ThreadGroup:
    """One rank's view of a group of threads."""

    is_capturable = False

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, box: list[Any]) -> None:
        """Join as ``rank`` of ``size``; all share ``barrier`` and ``box``, a list of ``size``."""
        self.rank, self.size = rank, size
        self._barrier, self._box = barrier, box

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        return torch.stack(self._exchange(x)).sum(dim=0)

    def all_gather(self, x_TC: Tensor) -> Tensor:
        """Return the ranks' columns side by side."""
        return torch.cat(self._exchange(x_TC), dim=-1)

    def broadcast(self, x: Tensor) -> Tensor:
        """Return what rank 0 has."""
        return self._exchange(x)[0]

    def close(self) -> None:
        """End the wait of every rank."""
        self._barrier.abort()

    def _exchange(self, x: Tensor) -> list[Tensor]:
        self._box[self.rank] = x
        self._barrier.wait(timeout=60)
        got = list(self._box)
        self._barrier.wait(timeout=60)
        return got


def on_ranks(size: int, run: Callable[[ThreadGroup], Tensor]) -> list[Tensor]:
    """Return what ``run`` gives on each rank, all at the same time.

    Args:
        size: How many ranks.
        run: Called in a thread for each rank.
    """
    barrier, box = threading.Barrier(size), [None] * size
    groups = [ThreadGroup(rank, size, barrier, box) for rank in range(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, groups))
