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
UNIT = 1 << 20
"""By how much a payer's clock goes on for a token, where its share is 1."""
MAX_CLOCKS = 1024


class Policy(Protocol):
    """Orders requests. Arithmetic of tokens, pages and slots is not its business."""

    def enter(self, request: Request) -> None:
        """Note that ``request`` waits from now on, for the first time or again."""
        ...

    def let_pass(self, waiting: list[Request], place: int) -> None:
        """Have a request that was put in the queue change places, and keys, with others before it.

        Args:
            waiting: The queue, sorted by ``key``; so it is after this.
            place: Of the request.
        """
        ...

    def leave(self, request: Request) -> None:
        """Note that ``request`` waits no longer, for it runs."""
        ...

    def end(self, request: Request) -> None:
        """Note that ``request`` is over."""
        ...

    def key(self, request: Request) -> tuple[int, ...]:
        """Return what the waiting queue is sorted by; unique, changed by ``let_pass`` alone."""
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

    def enter(self, request: Request) -> None:
        """Its arrival says all."""

    def let_pass(self, waiting: list[Request], place: int) -> None:
        """No request passes another."""

    def leave(self, request: Request) -> None:
        """Nothing is counted."""

    def end(self, request: Request) -> None:
        """Nothing is counted."""

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
            goes_first = num_admitted >= request.overtaken_at or request.num_retractions > 0
            return (0, request.arrival) if goes_first else (1, -cached(request))

        return sorted(islice(waiting, WINDOW), key=rank)


class Line:
    """Turns of those who share something, by start-time fair queueing.

    Each has a clock, which goes on by what it uses over its share. A turn is its owner's clock at
    the time, though not before the turn of who was served last: who was idle saves nothing up, it
    goes first among equals only.

    Source:
        Goyal, Vin and Cheng 1997, "Start-time Fair Queuing", section 2.
    """

    __slots__ = ("_clocks", "_now")

    def __init__(self) -> None:
        self._now = 0
        """Turn of who was served last."""
        self._clocks: dict[str, int] = {}
        """Of those that are ahead of it."""

    def turn(self, owner: str) -> tuple[int, int]:
        """Return the turn of ``owner`` and, for ties, its clock."""
        clock = self._clocks.get(owner, -1)
        return max(self._now, clock), clock

    def charge(self, owner: str, amount: int) -> None:
        """Note that ``owner`` uses ``amount``."""
        self._clocks[owner] = max(self._now, self._clocks.get(owner, 0)) + amount

    def serve(self, turn: int) -> None:
        """Note that a turn has come."""
        self._now = max(self._now, turn)

    def forget(self) -> None:
        """Forget payers that are not ahead of others: they would get the same turn."""
        if len(self._clocks) > MAX_CLOCKS:
            self._clocks = {each: at for each, at in self._clocks.items() if at > self._now}

    @property
    def is_level(self) -> bool:
        """Whether no request is ahead."""
        return all(at <= self._now for at in self._clocks.values())


class FairShares(FirstCome):
    """Equal shares of the tokens for those who pay, by their weights, and among each one's users.

    A request's turn is its payer's when it arrived; outputs are counted when they are there, so
    nothing need be guessed. The turns of one payer go to its users by turns of their own: one that
    sends a thousand requests waits behind itself, and takes nothing from other payers.
    """

    def __init__(self) -> None:
        self._payers = Line()
        self._users: dict[str, Line] = {}
        """By payer: the turns of its users."""

    def enter(self, request: Request) -> None:
        if request.turn < 0:
            request.turn, request.clock = self._payers.turn(request.payer)
            request.seat = request.arrival
            users = self._users.setdefault(request.payer, Line())
            request.user_turn, request.user_clock = users.turn(request.user)
            self._charge(request, len(request.prompt))

    def let_pass(self, waiting: list[Request], place: int) -> None:
        request = waiting[place]
        mine = (request.user_turn, request.user_clock, request.arrival)
        for ahead in range(place - 1, -1, -1):
            other = waiting[ahead]
            if other.payer != request.payer:
                continue
            if (other.user_turn, other.user_clock, other.arrival) <= mine:
                return
            waiting[ahead], waiting[place] = request, other
            request.turn, other.turn = other.turn, request.turn
            request.clock, other.clock = other.clock, request.clock
            request.seat, other.seat = other.seat, request.seat
            place = ahead

    def leave(self, request: Request) -> None:
        self._payers.serve(request.turn)
        users = self._users.get(request.payer)
        if users is not None:
            users.serve(request.user_turn)

    def end(self, request: Request) -> None:
        if request.outputs:
            self._charge(request, len(request.outputs))
        self._payers.forget()
        users = self._users.get(request.payer)
        if users is not None:
            users.forget()
        if len(self._users) > MAX_CLOCKS:
            self._users = {payer: line for payer, line in self._users.items() if not line.is_level}

    def key(self, request: Request) -> tuple[int, ...]:
        return (request.turn, request.clock, request.seat)

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=self.key)

    def _charge(self, request: Request, num_tokens: int) -> None:
        self._payers.charge(request.payer, num_tokens * UNIT // request.share)
        self._users.setdefault(request.payer, Line()).charge(request.user, num_tokens)


class HighestPriority(FirstCome):
    """Larger priority first, and first come among equals."""

    def key(self, request: Request) -> tuple[int, ...]:
        return (-request.priority, request.arrival)

    def victim(self, running: Sequence[Request]) -> Request:
        return max(running, key=self.key)


def policy_of(name: Literal["fair", "fcfs", "lpm", "priority"]) -> Policy:
    """Return the policy that the settings name."""
    if name == "fair":
        return FairShares()
    if name == "lpm":
        return LongestPrefix()
    return HighestPriority() if name == "priority" else FirstCome()


def _by_arrival(request: Request) -> int:
    return request.arrival
