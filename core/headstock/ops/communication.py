"""Collectives among the ranks that share a model: what layers and the runner call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Group(Protocol):
    """Ranks that hold slices of the same layers. Every rank calls the same things in order."""

    @property
    def rank(self) -> int:
        """This process's place in the group, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many ranks there are."""
        ...

    @property
    def is_capturable(self) -> bool:
        """Whether the collectives may be part of a captured step."""
        ...

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return the sum over the ranks; may work in place. Any shape."""
        ...

    def all_gather(self, x_TC: Tensor) -> Tensor:
        """Return the ranks' tensors side by side, rank 0 first. [T, size * C]"""
        ...

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's tensor; works in place. Any shape."""
        ...

    def close(self) -> None:
        """Leave the group.

        Called once, on every rank, when it ends and when a start fails after joining; before the
        device is closed. Graphs that hold its collectives are dropped before. What was queued may
        still run, or wait for a rank that is lost: end it, and wait.
        """
        ...


class SingleRank:
    """The group of one: everything is the identity."""

    rank = 0
    size = 1
    is_capturable = True

    def all_reduce(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def all_gather(self, x_TC: Tensor) -> Tensor:
        """Return ``x_TC``."""
        return x_TC

    def broadcast(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def close(self) -> None:
        """Do nothing: there is no other rank to leave."""
