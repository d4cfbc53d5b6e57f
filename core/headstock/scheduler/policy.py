"""In which order waiting requests are tried, and who gives up pages when they run out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Literal, Protocol

from headstock.scheduler.request import Request

WINDOW = 64
"""Waiting requests that longest-prefix looks at: a look costs a search in the tree."""
PATIENCE = 64
"""Admissions by which others may overtake a request."""


class Policy(Protocol):
    """Orders requests. Arithmetic of tokens, pages and slots is not its business."""

    def key(self, request: Request) -> tuple[int, ...]:
        """Return what the waiting queue is sorted by; unique, fixed while the request waits."""
        ...

    def order(
        self, waiting: Sequence[Request], cached: Callable[[Request], int], num_admitted: int
    ) -> Sequence[Request]:
        """Return the requests to try, first to last.

        Args:
            waiting: The queue, sorted by ``key``.
            cached: Pages of a request's prefix that are in the tree.
            num_admitted: Requests admitted since the start.
        """
        ...

    def victim(self, running: Sequence[Request]) -> Request:
        """Return the running request that gives its pages up; never the first in line."""
        ...


class FirstCome:
    """First come, first served."""

    def key(self, request: Request) -> tuple[int, ...]:
        return (request.arrival,)

    def order(
        self, waiting: Sequence[Request], cached: Callable[[Request], int], num_admitted: int
    ) -> Sequence[Request]:
        return waiting

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=_by_arrival)


class LongestPrefix(FirstCome):
    """Longest cached prefix first, among those at the front; overtaking has a limit."""

    def order(
        self, waiting: Sequence[Request], cached: Callable[[Request], int], num_admitted: int
    ) -> Sequence[Request]:
        def rank(request: Request) -> tuple[int, int]:
            is_due = num_admitted >= request.overtaken_at or request.num_retractions > 0
            return (0, request.arrival) if is_due else (1, -cached(request))

        return sorted(islice(waiting, WINDOW), key=rank)


class HighestPriority:
    """Larger priority first, and first come among equals."""

    def key(self, request: Request) -> tuple[int, ...]:
        return (-request.priority, request.arrival)

    def order(
        self, waiting: Sequence[Request], cached: Callable[[Request], int], num_admitted: int
    ) -> Sequence[Request]:
        return waiting

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=self.key)


def policy_of(name: Literal["fcfs", "lpm", "priority"]) -> Policy:
    """Return the policy that the settings name."""
    if name == "lpm":
        return LongestPrefix()
    return HighestPriority() if name == "priority" else FirstCome()


def _by_arrival(request: Request) -> int:
    return request.arrival
