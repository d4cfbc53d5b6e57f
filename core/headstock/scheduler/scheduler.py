"""The scheduler: events in, step plans out.

A pure function of the ordered log of its calls: clock readings are arguments, nothing is random,
nothing depends on the order of a set. Ranks that see the same calls make the same plans.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from headstock.cache import PageCache
from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.scheduler.accept import accept
from headstock.scheduler.budgets import AdapterPlaces, Budget, StepTokens
from headstock.scheduler.counters import Counters
from headstock.scheduler.drafting import Drafting
from headstock.scheduler.encoder import EncoderBudget
from headstock.scheduler.flight import Drawn
from headstock.scheduler.planner import Planner
from headstock.scheduler.policy import policy_of
from headstock.scheduler.queue import QueueBounds, WaitingQueue
from headstock.scheduler.register import Register, Running
from headstock.scheduler.request import NEVER, Request
from headstock.scheduler.residence import Residence
from headstock.scheduler.settling import Settling
from headstock.scheduler.story import GRAMMAR, Notes
from headstock.wire.messages import Cut, Ended, Submit
from headstock.wire.steps import RunnerLimits, StepPlan, StepResult


class Scheduler:
    """Decides what the next step computes.

    Args:
        limits: What the runner can hold.
        policy: Order of waiting requests.
        max_running: Requests computed at once; the runner's slots when None.
        max_step_tokens: Most tokens a step computes; the runner's limit when None.
        max_queued_requests: Requests that may wait, beyond those there are slots for.
        max_queued_tokens: Prompt tokens that may wait.
        prefix_cache: Whether equal prefixes share pages.
        checkpoint_tokens: Keep the state of models that have one each time a prompt has grown by
            so many tokens; None: only at its end, and where it parts from a cached one.
    """

    def __init__(
        self,
        limits: RunnerLimits,
        *,
        policy: Literal["fair", "fcfs", "lpm", "priority"] = "fcfs",
        max_running: int | None = None,
        max_step_tokens: int | None = None,
        max_queued_requests: int = 2048,
        max_queued_tokens: int = 4_000_000,
        prefix_cache: bool = True,
        checkpoint_tokens: int | None = None,
    ) -> None:
        self.limits = limits
        is_causal = limits.is_causal
        step_tokens = min(max_step_tokens or NEVER, limits.max_step_tokens)
        self.tokens = StepTokens(step_tokens, is_causal=is_causal)
        self.cache = PageCache(
            limits.groups,
            is_sharing=prefix_cache and is_causal,
            row_tokens=1 + limits.max_drafts,
        )
        self.counters = Counters()
        self.adapters = AdapterPlaces(limits.num_adapters)
        order = policy_of(policy)
        self._residence = Residence(self.cache, checkpoint_tokens)
        # Every running request gets at least a token a step, so there are no more than these.
        count = min(max_running or NEVER, limits.num_slots, step_tokens)
        budgets: list[Budget] = [self.adapters] if limits.num_adapters else []
        self.encoder = EncoderBudget(limits.media, step_tokens)
        held = [*budgets, self.encoder] if limits.media is not None else budgets
        self._running = Running(count, self._residence, held)
        self._queue = WaitingQueue(order)
        self._bounds = QueueBounds(
            self._queue, self.counters, max_queued_requests, max_queued_tokens
        )
        self._register = Register(self._queue, self._running, self._residence, self.counters)
        self._drafting = Drafting(limits, self.counters)
        self._planner = Planner(
            limits,
            tokens=self.tokens,
            budgets=budgets,
            policy=order,
            queue=self._queue,
            running=self._running,
            residence=self._residence,
            encoder=self.encoder,
            counters=self.counters,
            drafting=self._drafting,
        )
        self._settling = Settling(self._residence, self._register, self.counters, self._drafting)
        self._num_arrived = 0

    # What is known of it.

    @property
    def num_waiting(self) -> int:
        """Requests that have no slot."""
        return len(self._queue)

    @property
    def num_running(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def num_in_flight(self) -> int:
        """Steps planned but not settled."""
        return len(self._planner.flights)

    @property
    def has_work(self) -> bool:
        """Whether there is a request or a step that is not over."""
        return bool(self._register or self._planner.flights)

    def take_ended(self) -> list[Ended]:
        """Return the ends since the last call, in order."""
        return self._register.take_ended()

    def check(self) -> None:
        """Assert that every page has one owner and every request one place. For tests."""
        self.cache.check([request.tables for request in self._running])
        assert len(self._running) + len(self._queue) == len(self._register)
        self._running.check()
        self.encoder.store.check()

    # Events.

    def submit(self, submit: Submit, now_s: float, prepared_s: float = 0.0) -> None:
        """Queue a request, or end it at once when it cannot be served.

        Args:
            submit: The request.
            now_s: Clock reading. Seconds.
            prepared_s: How long its grammar was waited for. Seconds.
        """
        register = self._register
        known = register.get(submit.id)
        if known is not None:
            if known.attempt == submit.attempt:
                return
            if known.attempt > submit.attempt:
                reason = FinishReason("abort", message="A later attempt is running.")
                register.refuse(submit, reason)
                return
            register.end(known, FinishReason("abort", message="The request was sent again."))
        self.counters.requests_submitted += 1
        self._num_arrived += 1
        try:
            request = accept(
                submit,
                arrival=self._num_arrived,
                now_s=now_s,
                limits=self.limits,
                max_step_tokens=self.tokens.limit,
                max_cached=self.cache.max_tokens,
            )
            self._bounds.check(request, num_free=len(self._running.slots.free))
        except RequestError as error:
            register.refuse(submit, self._bounds.refusal(error))
            return
        if submit.wants_story:
            request.notes = Notes(self._planner.waits.read())
            if prepared_s:
                request.notes.waits[GRAMMAR] = prepared_s
        self._queue.add(request)
        register.add(request)
        if request.outputs:
            self._end_if_complete(request)

    def abort(self, request_id: str, message: str = "The request was aborted.") -> None:
        """End a request now; does nothing when it is over or was never known."""
        request = self._register.get(request_id)
        if request is not None:
            self._register.end(request, FinishReason("abort", message=message))

    def abort_all(self, message: str = "All requests were aborted.") -> None:
        """End every request."""
        for request in self._register.all():
            self._register.end(request, FinishReason("abort", message=message))

    def end_adapter(self, adapter: str, reason: FinishReason) -> None:
        """End every request with ``adapter``, and give its place up."""
        for request in self._register.all():
            if request.adapter == adapter:
                self._register.end(request, reason)
        self.adapters.forget(adapter)

    def cut(self, cut: Cut) -> None:
        """End a request whose text matched a stop; does nothing when that attempt is over."""
        request = self._register.get(cut.id)
        if request is not None and request.attempt == cut.attempt:
            keep = max(0, min(cut.keep, len(request.outputs)))
            self._register.end(request, FinishReason("stop", matched=cut.matched), num_outputs=keep)

    def refuse(self, submit: Submit, reason: FinishReason) -> None:
        """End a request that was never submitted."""
        self._register.refuse(submit, reason)

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a running request whose outputs have settled; what is in flight for it is dropped."""
        known = min(request.num_known - 1, request.computed)
        self._residence.publish(request, known, request.last_step)
        self._register.end(request, reason)

    def retract_all(self) -> None:
        """Take the pages of every running request; they wait again, and keep what they have drawn.

        Nothing may be in flight.
        """
        self._planner.retract_all()

    def flush(self) -> int:
        """Forget every prefix that no live request uses; returns how many pages that frees."""
        return self.cache.flush()

    def _end_if_complete(self, request: Request) -> None:
        """End a request that comes back with all its outputs: only the news of it was lost."""
        is_stop = request.outputs[-1] in request.stop_ids
        if is_stop or len(request.outputs) >= request.max_outputs:
            self._register.end_complete(request)

    # Steps.

    def plan(self, now_s: float) -> StepPlan | None:
        """Plan the next step, which must then be launched.

        Returns:
            The plan, or None: nothing to do before a step in flight settles or a message comes.
        """
        if not self._planner.flights:
            self._bounds.throughput.start(now_s)
        plan = self._planner.plan(now_s)
        if plan is not None and self.adapters.has_placed:
            plan = msgspec.structs.replace(plan, adapters=self.adapters.take_placed())
        return plan

    def note_blocker(self, what: str, now_s: float) -> None:
        """Note that ``what``, which the scheduler does not see, keeps requests out from now on."""
        waits = self._planner.waits
        waits.advance(now_s)
        waits.block(what)

    def masked(self, plan: StepPlan) -> list[Request]:
        """Return whose the masked slots of the step planned last are; some may be over by now."""
        by_slot = self._planner.flights[-1].by_slot()
        return [by_slot[slot] for slot in plan.masked]

    def settle(self, result: StepResult, now_s: float) -> Drawn:
        """Take in what the oldest step in flight drew; returns what is to be published."""
        flight = self._planner.flights.popleft()
        assert flight.step == result.step, f"step {result.step} settled before {flight.step}"
        self._bounds.throughput.settle(flight.num_tokens, now_s)
        self._drafting.measure(flight, now_s)
        return self._settling.settle(flight, result)

    def fail_all(self, message: str) -> None:
        """End all that runs: the runner failed, and what its slots hold is unknown.

        What settled steps have written stays cached, waiting requests go on. The next plan
        empties every slot, also those that are empty.
        """
        planner = self._planner
        if planner.flights:
            self.cache.withdraw_since(planner.flights[0].step)
        planner.forget()
        self.cache.settle(planner.step - 1)
        for request in list(self._running):
            self._register.fail(request, message)
        self._running.leave_all()
        self.adapters.forget_all()  # the plan that placed some may not have been launched
