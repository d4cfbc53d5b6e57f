"""Which requests are live, which of them run, and how the others ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headstock.requests import FinishReason
from headstock.scheduler.budgets import Budget, Slots
from headstock.scheduler.counters import Counters
from headstock.scheduler.queue import WaitingQueue
from headstock.scheduler.request import Request
from headstock.scheduler.residence import Residence
from headstock.wire.messages import Ended, Submit


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


class Register:
    """Live requests by their id; makes each attempt's only ``Ended``.

    Args:
        queue: Those that wait.
        running: Those that run.
        residence: Their pages.
        counters: Where ends are counted.
    """

    def __init__(
        self, queue: WaitingQueue, running: Running, residence: Residence, counters: Counters
    ) -> None:
        self._queue = queue
        self._running = running
        self._residence = residence
        self._counters = counters
        self._live: dict[str, Request] = {}
        self._ended: list[Ended] = []

    def __len__(self) -> int:
        return len(self._live)

    def get(self, request_id: str) -> Request | None:
        """Return the live request of this id."""
        return self._live.get(request_id)

    def all(self) -> list[Request]:
        """Return every live request, in the order of their arrival."""
        return list(self._live.values())

    def add(self, request: Request) -> None:
        """Note a request that waits from now on."""
        self._live[request.id] = request
        self._residence.forget_short()

    def take_ended(self) -> list[Ended]:
        """Return the ends since the last call, in order."""
        ended, self._ended = self._ended, []
        return ended

    def end(self, request: Request, reason: FinishReason, num_outputs: int | None = None) -> None:
        """End a request: the one place where its only ``Ended`` is made."""
        del self._live[request.id]
        request.is_over = True
        if request.slot >= 0:
            self._running.unseat(request)
        else:
            self._queue.remove(request)
        self._queue.end(request)
        self._residence.forget_short()
        self._counters.count_end(reason.kind)
        self._ended.append(
            Ended(
                id=request.id,
                attempt=request.attempt,
                reason=reason,
                num_outputs=len(request.outputs) if num_outputs is None else num_outputs,
                cached_tokens=max(0, request.cached_tokens),
                num_retractions=request.num_retractions,
                queue_s=request.queue_s,
                num_drafted=request.num_drafted,
                num_accepted=request.num_accepted,
                story=None if request.notes is None else request.notes.tell(request.last_step),
            )
        )

    def end_complete(self, request: Request) -> None:
        """End a request that has drawn its last token."""
        outputs = request.outputs
        is_stop = bool(outputs) and outputs[-1] in request.stop_ids
        reason = FinishReason("stop", matched=outputs[-1]) if is_stop else FinishReason("length")
        self.end(request, reason)

    def fail(self, request: Request, message: str) -> None:
        """End a request that could not be computed."""
        self._counters.faults += 1
        request.is_failed = True
        self.end(request, FinishReason("error", message=message, code="computation_failed"))

    def refuse(self, submit: Submit, reason: FinishReason) -> None:
        """End a request that was never accepted."""
        self._counters.count_end(reason.kind)
        self._ended.append(
            Ended(
                id=submit.id,
                attempt=submit.attempt,
                reason=reason,
                num_outputs=len(submit.output_ids),
            )
        )
