"""Requests that wait for a slot and pages, and how many may."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from headstock.scheduler.policy import PATIENCE, Policy
from headstock.scheduler.request import Request


class WaitingQueue:
    """Waiting requests, sorted by the policy's key.

    A retracted request keeps its arrival, so it comes back before all that arrived after it.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._keys: list[tuple[int, ...]] = []
        self._requests: list[Request] = []
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request, num_admitted: int) -> None:
        """Let ``request`` wait; ``num_admitted`` requests were admitted so far."""
        key = self._policy.key(request)
        place = bisect_left(self._keys, key)
        insort(self._keys, key)
        self._requests.insert(place, request)
        self.num_tokens += len(request.prompt)
        request.overtaken_at = num_admitted + place + PATIENCE

    def remove(self, request: Request) -> None:
        """Take ``request``, which must wait, out."""
        place = bisect_left(self._keys, self._policy.key(request))
        assert self._requests[place] is request, f"request {request.id!r} does not wait"
        del self._keys[place]
        del self._requests[place]
        self.num_tokens -= len(request.prompt)

    def order(self, cached: Callable[[Request], int], num_admitted: int) -> Sequence[Request]:
        """Return the requests to try now, in the policy's order; a copy, safe to remove from."""
        return list(self._policy.order(self._requests, cached, num_admitted))

    def all(self) -> list[Request]:
        """Return every waiting request, in queue order."""
        return list(self._requests)
