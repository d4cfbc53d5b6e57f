"""What a step or the server can run out of, each as one small account.

A new scarce resource is a new budget, not a new branch in the planner. Pages are accounted for in
:mod:`residence`: how many a request needs depends on what the cache has of it.
"""

from __future__ import annotations

import heapq
from typing import Protocol

from headstock.scheduler.request import Request


class Budget(Protocol):
    """Something that admission asks for room.

    Attributes:
        name: Its name in reports of what a request waited for.
        can_be_passed: Whether others may overtake a request that lacks this, for a while.
    """

    name: str
    can_be_passed: bool

    def room_for(self, request: Request, num_tokens: int) -> int:
        """Return how many of the next ``num_tokens`` of ``request`` it covers. Changes nothing."""
        ...

    def spend(self, request: Request, num_tokens: int) -> None:
        """Set aside what ``num_tokens`` of ``request`` cost."""
        ...

    def refund(self, request: Request) -> None:
        """Take back what ``request`` holds as long as it runs."""
        ...


class StepTokens:
    """Tokens that one step computes.

    Args:
        limit: Most tokens a step computes.
        is_causal: Whether a prompt may be computed in chunks.
    """

    name = "step"
    can_be_passed = False

    def __init__(self, limit: int, *, is_causal: bool) -> None:
        self.limit = limit
        self.left = limit
        self._is_causal = is_causal

    def begin(self) -> None:
        """Begin a step."""
        self.left = self.limit

    def room_for(self, request: Request, num_tokens: int) -> int:
        if num_tokens <= self.left:
            return num_tokens
        return self.left if self._is_causal else 0

    def spend(self, request: Request, num_tokens: int) -> None:
        self.left -= num_tokens

    def refund(self, request: Request) -> None:
        """Tokens are spent for one step."""


class Slots:
    """Places in the runner's table; the lowest free one is given first."""

    name = "slots"
    can_be_passed = False

    def __init__(self, count: int) -> None:
        self._free = list(range(count))

    @property
    def free(self) -> list[int]:
        """The slots that no request has."""
        return self._free

    def room_for(self, request: Request, num_tokens: int) -> int:
        return num_tokens if self._free else 0

    def spend(self, request: Request, num_tokens: int) -> None:
        request.slot = heapq.heappop(self._free)

    def refund(self, request: Request) -> None:
        heapq.heappush(self._free, request.slot)
        request.slot = -1


class AdapterPlaces:
    """Places of LoRA adapters on the device, numbered from 1; 0 is: no adapter.

    An adapter keeps its place when its last request ends, until another needs one: then the one
    that was used least recently gives way.

    Args:
        count: Places there are.
    """

    name = "adapter"
    can_be_passed = True

    def __init__(self, count: int) -> None:
        self.num_places = count
        self._free = list(range(count, 0, -1))
        self._places: dict[str, int] = {}
        """Of the adapters on the device, the least recently used first."""
        self._users: dict[str, int] = {}
        self._placed: list[tuple[int, str]] = []

    @property
    def has_placed(self) -> bool:
        """Whether :meth:`take_placed` would return any."""
        return bool(self._placed)

    def take_placed(self) -> list[tuple[int, str]]:
        """Return the places and adapters to load before the next plan is launched, in order."""
        placed, self._placed = self._placed, []
        return placed

    def forget_all(self) -> None:
        """Know of no adapter where it is any more: what the device holds is not certain."""
        assert not self._users, f"running requests use {sorted(self._users)}"
        self._free += self._places.values()
        self._places.clear()
        self._placed.clear()

    def forget(self, adapter: str) -> bool:
        """Give the place of ``adapter`` up; returns whether no running request uses it."""
        if self._users.get(adapter):
            return False
        place = self._places.pop(adapter, None)
        if place is not None:
            self._free.append(place)
            self._placed = [placed for placed in self._placed if placed[1] != adapter]
        return True

    def room_for(self, request: Request, num_tokens: int) -> int:
        adapter = request.adapter
        if not adapter or adapter in self._places or self._free:
            return num_tokens
        return num_tokens if self._idle() is not None else 0

    def spend(self, request: Request, num_tokens: int) -> None:
        adapter = request.adapter
        if not adapter:
            return
        place = self._places.pop(adapter, None)
        if place is None:
            if not self._free:
                idle = self._idle()
                assert idle is not None, "an adapter was admitted without room for it"
                self._free.append(self._places.pop(idle))
            place = self._free.pop()
            self._placed.append((place, adapter))
        self._places[adapter] = place
        self._users[adapter] = self._users.get(adapter, 0) + 1
        request.adapter_place = place

    def refund(self, request: Request) -> None:
        adapter = request.adapter
        if adapter:
            self._users[adapter] -= 1
            if not self._users[adapter]:
                del self._users[adapter]
            request.adapter_place = 0

    def _idle(self) -> str | None:
        """Return the adapter that no running request uses and that was used least recently."""
        return next((name for name in self._places if name not in self._users), None)
