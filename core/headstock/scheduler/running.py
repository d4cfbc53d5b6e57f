"""Who runs: the requests that have a slot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headstock.scheduler.budgets import Budget, Slots
from headstock.scheduler.request import Request
from headstock.scheduler.residence import Residence


class Running:
    """Requests with a slot, in the order of their admission.

    Args:
        count: Requests that may run at once.
        residence: Their pages.
        budgets: What a request holds as long as it runs, besides its slot.
    """

    def __init__(self, count: int, residence: Residence, budgets: Sequence[Budget]) -> None:
        self.count = count
        self.requests: list[Request] = []
        self.slots = Slots(count)
        self.num_left = 0
        """Requests that have left since the start: the last plan's rows run on when it is equal."""
        self._residence = residence
        self._budgets: list[Budget] = [self.slots, *budgets]
        self._leaving: list[int] = []

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self.requests)

    @property
    def is_full(self) -> bool:
        """Whether no slot is free."""
        return not self.slots.free

    def seat(self, request: Request) -> None:
        """Give ``request``, which has its pages, a slot and what else it holds while it runs."""
        for budget in self._budgets:
            budget.spend(request, 0)
        self.requests.append(request)

    def unseat(self, request: Request) -> None:
        """Take slot, pages and all else of a running request."""
        self.requests.remove(request)
        self._residence.move_out(request)
        self._leaving.append(request.slot)
        for budget in self._budgets:
            budget.refund(request)
        request.query = 0
        self.num_left += 1

    def take_leaving(self) -> list[int]:
        """Return the slots that were left since the last plan."""
        leaving, self._leaving = self._leaving, []
        return leaving

    def leave_all(self) -> None:
        """Empty every slot with the next plan, also those that are empty."""
        self._leaving = list(range(self.count))

    def check(self) -> None:
        """Assert that every slot has one place. For tests."""
        slots = sorted([request.slot for request in self.requests] + self.slots.free)
        assert slots == list(range(self.count)), f"slots are lost or doubled: {slots}"
