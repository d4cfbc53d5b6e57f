"""The scheduler: events in, step plans out.

A pure function of the ordered log of its calls: clock readings are arguments, nothing is random,
nothing depends on the order of a set. Ranks that see the same calls make the same plans.

One file because it is one state machine: which requests wait, which run, which steps are in
flight. Pages are :mod:`residence`'s, order is the policy's, columns are :mod:`writer`'s.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Literal

from headstock.cache import PageCache
from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.scheduler.accept import accept
from headstock.scheduler.changes import Changes
from headstock.scheduler.counters import Counters
from headstock.scheduler.flight import NO_QUERIES, Drawn, Flight
from headstock.scheduler.policy import policy_of
from headstock.scheduler.queue import WaitingQueue
from headstock.scheduler.request import NEVER, Request
from headstock.scheduler.residence import Entry, Residence
from headstock.scheduler.throughput import Throughput
from headstock.scheduler.writer import PlanWriter
from headstock.wire.messages import Cut, Ended, Submit
from headstock.wire.steps import DRAW, FROM_DEVICE, RunnerLimits, StepPlan, StepResult

MAX_PENDING = 128
"""Requests looked at in one step that wait for a prefix; a look costs a search in the tree."""


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
        policy: Literal["fcfs", "lpm", "priority"] = "fcfs",
        max_running: int | None = None,
        max_step_tokens: int | None = None,
        max_queued_requests: int = 2048,
        max_queued_tokens: int = 4_000_000,
        prefix_cache: bool = True,
        checkpoint_tokens: int | None = None,
    ) -> None:
        self.limits = limits
        self.max_step_tokens = min(max_step_tokens or NEVER, limits.max_step_tokens)
        # Every running request gets at least a token a step, so there are no more than these.
        self.max_running = min(max_running or NEVER, limits.num_slots, self.max_step_tokens)
        self.max_queued_requests = max_queued_requests
        self.max_queued_tokens = max_queued_tokens
        self.cache = PageCache(
            limits.groups, is_sharing=prefix_cache, row_tokens=1 + limits.max_drafts
        )
        self._max_cached = self.cache.max_tokens or limits.max_length
        self._token_groups = [group.index for group in self.cache.tokens]
        self._state_groups = [group.index for group in self.cache.states]
        self.counters = Counters()
        self._policy = policy_of(policy)
        self._queue = WaitingQueue(self._policy)
        self._residence = Residence(self.cache, checkpoint_tokens)
        self._writer = PlanWriter(self.cache.page_tokens, has_drafts=limits.max_drafts > 0)
        self._throughput = Throughput()
        self._live: dict[str, Request] = {}
        self._running: list[Request] = []
        self._flights: deque[Flight] = deque()
        self._ended: list[Ended] = []
        self._free_slots = list(range(self.max_running))
        self._leaving: list[int] = []
        self._step = 1
        self._num_arrived = 0
        self._num_admitted = 0
        self._steady_steps = 0
        self._steady_queries = NO_QUERIES

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
        return len(self._flights)

    @property
    def has_work(self) -> bool:
        """Whether there is a request or a step that is not over."""
        return bool(self._live or self._flights)

    def take_ended(self) -> list[Ended]:
        """Return the ends since the last call, in order."""
        ended, self._ended = self._ended, []
        return ended

    def check(self) -> None:
        """Assert that every page has one owner and every request one place. For tests."""
        self.cache.check([request.tables for request in self._running])
        assert len(self._running) + len(self._queue) == len(self._live)
        slots = sorted([request.slot for request in self._running] + self._free_slots)
        assert slots == list(range(self.max_running)), f"slots are lost or doubled: {slots}"

    # Events.

    def submit(self, submit: Submit, now_s: float) -> None:
        """Let a request wait, or end it at once when it cannot be served."""
        known = self._live.get(submit.id)
        if known is not None:
            if known.attempt == submit.attempt:
                return
            if known.attempt > submit.attempt:
                self._refuse(submit, FinishReason("abort", message="A later attempt is running."))
                return
            self._end(known, FinishReason("abort", message="The request was sent again."))
        self.counters.requests_submitted += 1
        self._num_arrived += 1
        try:
            request = accept(
                submit,
                arrival=self._num_arrived,
                now_s=now_s,
                max_length=self.limits.max_length,
                max_cached=self._max_cached,
                vocab_size=self.limits.vocab_size,
                max_drafts=self.limits.max_drafts,
            )
            self._check_queue(request)
        except RequestError as error:
            self._refuse(submit, self._refusal(error))
            return
        self._live[request.id] = request
        self._queue.add(request, self._num_admitted)
        self._residence.forget_short()
        if request.outputs:
            self._end_if_complete(request)

    def abort(self, request_id: str, message: str = "The request was aborted.") -> None:
        """End a request now; does nothing when it is over or was never known."""
        request = self._live.get(request_id)
        if request is not None:
            self._end(request, FinishReason("abort", message=message))

    def abort_all(self, message: str = "All requests were aborted.") -> None:
        """End every request."""
        for request in list(self._live.values()):
            self._end(request, FinishReason("abort", message=message))

    def cut(self, cut: Cut) -> None:
        """End a request whose text matched a stop; does nothing when that attempt is over."""
        request = self._live.get(cut.id)
        if request is not None and request.attempt == cut.attempt:
            keep = max(0, min(cut.keep, len(request.outputs)))
            self._end(request, FinishReason("stop", matched=cut.matched), num_outputs=keep)

    def flush(self) -> int:
        """Forget every prefix that no live request uses; returns how many pages that frees."""
        return self.cache.flush()

    def _check_queue(self, request: Request) -> None:
        """Refuse ``request`` when enough wait already.

        Raises:
            RequestError: Code ``queue_full``.
        """
        num_queued = len(self._queue) - len(self._free_slots)
        num_tokens = self._queue.num_tokens + len(request.prompt)
        if num_queued < self.max_queued_requests and (
            num_queued < 0 or num_tokens <= self.max_queued_tokens
        ):
            return
        self.counters.refusals += 1
        raise RequestError(
            f"{len(self._queue)} requests with {self._queue.num_tokens} prompt tokens wait"
            f" already; at most {self.max_queued_requests} requests or {self.max_queued_tokens}"
            " tokens may.",
            remedy="Send the request again later.",
            code="queue_full",
        )

    def _refusal(self, error: RequestError) -> FinishReason:
        """Return how a request ends that ``error`` keeps out."""
        retry_after_s = None
        if error.code == "queue_full":
            ended = max(1, self.counters.requests_ended)
            mean_outputs = self.counters.generation_tokens / ended
            work = self._queue.num_tokens + len(self._queue) * mean_outputs
            retry_after_s = self._throughput.retry_after_s(work)
        return FinishReason(
            "error",
            message=f"{error.problem} {error.remedy}",
            code=error.code,
            retry_after_s=retry_after_s,
        )

    def _end_if_complete(self, request: Request) -> None:
        """End a request that comes back with all its outputs: only the news of it was lost."""
        if request.outputs[-1] in request.stop_ids:
            self._end(request, FinishReason("stop", matched=request.outputs[-1]))
        elif len(request.outputs) >= request.max_outputs:
            self._end(request, FinishReason("length"))

    # Planning.

    def plan(self, now_s: float) -> StepPlan | None:
        """Plan the next step, which must then be launched.

        Returns:
            The plan, or None: nothing to do before a step in flight settles or a message comes.
        """
        if not self._flights:
            self._throughput.start(now_s)
        if self._steady_steps > 0 and self._is_admission_shut():
            plan = self._plan_steady()
            if plan is not None:
                return plan
        return self._plan_anew(now_s)

    def _is_admission_shut(self) -> bool:
        """Whether no waiting request can be admitted, as far as that is known without trying."""
        return not self._queue or len(self._running) >= self.max_running or self._residence.is_short

    def _plan_steady(self) -> StepPlan | None:
        """Plan the rows of the last plan again; None: not enough pages, or they end differently."""
        if self._steady_queries:
            return self._plan_steady_drafts()
        writer = self._writer
        kv_max = [length + 1 for length in writer.kv_max]
        page_tokens = self.cache.page_tokens
        rows = writer.rows
        growing = [rows[i] for i, length in enumerate(kv_max) if length % page_tokens == 1]
        if page_tokens == 1:
            growing = rows
        changes = None
        if growing:
            changes = self._changes()
            ends = [request.computed + 1 for request in growing]
            if not self._residence.grow(growing, ends, changes):
                return None
        step = self._step
        self._step += 1
        for request in rows:
            request.computed += 1
            request.drawn += 1
            request.last_step = step
        self._steady_steps -= 1
        plan = writer.write_steady(step, kv_max, changes)
        self._flights.append(Flight(step, rows, plan.rows.slots, rows, len(rows), NO_QUERIES))
        return plan

    def _plan_steady_drafts(self) -> StepPlan | None:
        """Plan the rows of the last plan again, where they have drafts.

        What they drew since is known by now or not, so each row's bound is computed anew.
        """
        writer = self._writer
        rows, queries = writer.rows, writer.query_max
        kv_max: list[int] = []
        growing: list[Request] = []
        ends: list[int] = []
        page_tokens = self.cache.page_tokens
        for request, query in zip(rows, queries, strict=True):
            if request.drawn >= request.draw_limit or request.draw_query(query) < query:
                return None
            end = min(request.computed, request.last_begin) + query
            kv_max.append(end)
            if end > len(request.pages) * page_tokens:
                growing.append(request)
                ends.append(end)
        changes = self._changes()
        if growing and not self._residence.grow(growing, ends, changes):
            return None
        step = self._step
        self._step += 1
        for request, query in zip(rows, queries, strict=True):
            request.computed += query
            request.drawn += 1
            request.last_step = step
        self._steady_steps -= 1
        plan = writer.write_steady(step, kv_max, changes)
        flight = Flight(step, rows, plan.rows.slots, rows, sum(queries), queries)
        self._flights.append(flight)
        return plan

    def _changes(self) -> Changes:
        return Changes(self._token_groups, self._state_groups)

    def _plan_anew(self, now_s: float) -> StepPlan | None:
        """Plan a step from what every request still needs."""
        changes = self._changes()
        # Every running request gets a token at least; drafts share what is left.
        width = max(1, self.max_step_tokens // max(1, len(self._running)))
        width = min(width, 1 + self.limits.max_drafts)
        if not self._make_room(changes, width):
            return None
        budget = self._plan_running(width, changes)
        self._admit(budget, changes, now_s)
        members = [request for request in self._running if request.query]
        if not members:
            return self._plan_after_retraction(now_s)
        changes.leave, self._leaving = self._leaving, []
        plan = self._writer.write(self._step, members, changes)
        self._launch(plan)
        return plan

    def _plan_after_retraction(self, now_s: float) -> StepPlan | None:
        """Plan anew where no row could be planned; None: nothing is to be done now.

        Chunks take pages of window groups as they go. When none gets any and nothing is in flight,
        one request must give way.
        """
        if self._flights or not self._running:
            return None
        self._retract_one()
        return self._plan_anew(now_s)

    def _make_room(self, changes: Changes, width: int) -> bool:
        """Give pages to every row that outgrows its own, retracting others if need be.

        Args:
            changes: Where they are noted.
            width: Tokens that a row from the device computes, at most.

        Returns:
            False when steps in flight must settle first.
        """
        page_tokens = self.cache.page_tokens
        if not self.cache.tokens:
            return True
        while True:
            growing = [
                request
                for request in self._running
                if request.computed + width > len(request.pages) * page_tokens
                and request.drawn < request.draw_limit
                and request.computed >= request.host_end
            ]
            ends = [
                min(request.computed, request.last_begin) + request.draw_query(width)
                for request in growing
            ]
            if not growing or self._residence.grow(growing, ends, changes):
                return True
            if self._flights:
                return False
            self._retract_one()

    def _plan_running(self, width: int, changes: Changes) -> int:
        """Set what each running request computes; returns the tokens left in the step.

        Args:
            width: Tokens that a row from the device computes, at most.
            changes: Where page table entries are noted.
        """
        has_states = bool(self.cache.states)
        chunked: list[Request] = []
        budget = self.max_step_tokens
        for request in self._running:
            request.score = 0
            if request.computed < request.host_end:
                request.query = 0
                chunked.append(request)
            elif request.drawn < request.draw_limit:
                query = request.draw_query(width) if request.num_drafts else 1
                request.query = query
                if has_states and request.is_turning:
                    self._turn(request, changes)
                request.computed += query
                request.drawn += 1
                budget -= query
            else:
                request.query = 0
        for request in chunked:
            if budget == 0:
                break
            budget -= self._plan_chunk(request, budget, changes)
        return budget

    def _turn(self, request: Request, changes: Changes) -> None:
        """Change the state entries of a row being planned, and note whether they change again."""
        self._residence.turn(request, changes)
        request.is_turning = any(table.is_turning for table in request.tables.states)

    def _plan_chunk(self, request: Request, budget: int, changes: Changes) -> int:
        """Plan as many host tokens of ``request`` as ``budget`` covers; returns how many."""
        begin = request.computed
        end = min(request.host_end, begin + budget)
        cut = request.cuts[-1] if request.cuts else NEVER
        end = min(end, cut)
        if self.cache.windows:
            end = self._residence.extend(request, end, changes)
            if end <= begin:
                request.query = 0
                return 0
        if request.is_turning:
            self._residence.turn(request, changes)
        request.query = end - begin
        request.computed = end
        self.counters.prefill_tokens += request.query
        is_last = end == request.host_end
        if is_last:
            request.drawn += 1
        if request.score_next < len(request.prompt):
            scored_end = end if is_last else end + 1
            request.score = max(0, scored_end - request.score_next)
            request.score_next += request.score
        self._residence.publish(request, end, self._step)
        if end == cut:
            request.cuts.pop()
            self._residence.checkpoint(request, end, self._step)
        if request.tables.states:
            request.is_turning = any(table.is_turning for table in request.tables.states)
        return request.query

    def _admit(self, budget: int, changes: Changes, now_s: float) -> None:
        """Admit waiting requests in the policy's order while slots, pages and budget last.

        Nobody overtakes a request that does not fit; one that waits for a prefix in the making
        may be overtaken.
        """
        self._residence.forget_short()
        if not self._queue or not self._free_slots:
            return
        num_pending = 0
        for request in self._queue.order(self._residence.cached_grains, self._num_admitted):
            if budget == 0 or not self._free_slots or num_pending == MAX_PENDING:
                return
            entry = self._residence.move_in(request, self._step, len(self._running))
            if entry is Entry.NO_PAGES:
                return
            if entry is Entry.PREFIX_PENDING:
                num_pending += 1
                continue
            self._seat(request, now_s)
            changes.admit(request)
            budget -= self._plan_chunk(request, budget, changes)

    def _seat(self, request: Request, now_s: float) -> None:
        """Give ``request``, which has its pages, a slot."""
        self._queue.remove(request)
        request.slot = heapq.heappop(self._free_slots)
        request.score = 0
        self._running.append(request)
        self._num_admitted += 1
        if request.cached_tokens < 0:
            request.cached_tokens = min(request.computed, len(request.prompt))
            request.queue_s = now_s - request.submitted_s
            self.counters.prompt_tokens += len(request.prompt)
            self.counters.cached_tokens += request.cached_tokens

    def _launch(self, plan: StepPlan) -> None:
        """Note that ``plan`` is in flight, and how often the next can be the same."""
        self._step += 1
        rows = self._writer.rows
        for request in rows:
            request.last_step = plan.step
        sample = plan.rows.yields
        sampled = [request for request, is_drawn in zip(rows, sample, strict=True) if is_drawn]
        num_tokens = sum(plan.rows.query_max)
        queries = self._draft_queries(sampled, plan)
        flight = Flight(plan.step, rows, plan.rows.slots, sampled, num_tokens, queries)
        self._flights.append(flight)
        is_steady = not plan.host_ids and len(sampled) == len(rows)
        if self.cache.states and any(request.is_turning for request in rows):
            is_steady = False
        self._steady_queries = queries
        self._steady_steps = (
            min(request.draw_limit - request.drawn for request in rows) if is_steady else 0
        )

    def _draft_queries(self, sampled: list[Request], plan: StepPlan) -> list[int]:
        """Return the tokens of each row that draws, 1 for those from the host; empty: no drafts."""
        if not self.limits.max_drafts or not any(request.num_drafts for request in sampled):
            return NO_QUERIES
        rows = plan.rows
        columns = zip(rows.query_max, rows.source, rows.yields, strict=True)
        return [
            query if source == FROM_DEVICE else 1
            for query, source, yields in columns
            if yields == DRAW
        ]

    def _retract_one(self) -> None:
        """Retract who is the first to give way.

        One request alone fits, but in a shared arena its pages may lie in so many slabs that other
        groups find none: then it begins anew in an empty cache.
        """
        is_alone = len(self._running) == 1
        assert not is_alone or self.cache.arena is not None, "one request alone must fit"
        self._retract(self._policy.victim(self._running))
        if is_alone:
            self.cache.flush()

    def _retract(self, request: Request) -> None:
        """Take the pages of a running request; it waits again and keeps what it has drawn."""
        assert not self._flights, "retraction needs settled outputs"
        request.num_retractions += 1
        self.counters.retractions += 1
        self._unseat(request)
        self._queue.add(request, self._num_admitted)

    # Settling.

    def settle(self, result: StepResult, now_s: float) -> Drawn:
        """Take in what the oldest step in flight drew; returns what is to be published."""
        flight = self._flights.popleft()
        assert flight.step == result.step, f"step {result.step} settled before {flight.step}"
        self.cache.settle(flight.step)
        self._throughput.settle(flight.num_tokens, now_s)
        self.counters.steps += 1
        by_slot = flight.by_slot() if result.faults or result.logprobs else {}
        for fault in result.faults:
            request = by_slot[fault.slot]
            if not request.is_over:
                self._residence.withdraw(request)
                self._fail(request, fault.message)
            elif not request.is_failed:
                # It was aborted meanwhile: which pages it wrote is not known any more.
                self.cache.withdraw_since(flight.step)
        if flight.queries:
            self._shrink(flight, result)
        drawn = Drawn()
        finished = self._take_tokens(flight, result, drawn)
        for logprobs in result.logprobs:
            request = by_slot[logprobs.slot]
            if not request.is_over:
                drawn.add_logprobs(request, logprobs)
        for request in finished:
            self._finish(request)
        return drawn

    def _shrink(self, flight: Flight, result: StepResult) -> None:
        """Take from the bounds what the step's drafts did not yield."""
        columns = zip(flight.sampled, flight.queries, result.counts, strict=True)
        for request, query, count in columns:
            assert count <= query, f"slot {request.slot} drew {count} tokens of {query}"
            if not request.is_over and count:
                request.computed -= query - count
                request.drawn += count - 1

    def _take_tokens(self, flight: Flight, result: StepResult, drawn: Drawn) -> list[Request]:
        """Append the drawn tokens to their requests' outputs; returns those that are finished.

        Tokens of requests that ended meanwhile are dropped.
        """
        finished: list[Request] = []
        ids, token_ids = result.ids, drawn.token_ids
        end = 0
        for request, count, is_done in zip(flight.sampled, result.counts, result.done, strict=True):
            begin = end
            end += count
            if count == 0 or request.is_over:
                continue
            outputs = request.outputs
            if request.max_outputs:
                drawn.requests.append(request)
                drawn.offsets.append(len(outputs))
                drawn.counts.append(count)
                if count == 1:
                    token = ids[begin]
                    token_ids.append(token)
                    outputs.append(token)
                else:
                    assert flight.queries, f"slot {request.slot} drew {count} tokens of 1"
                    token_ids += ids[begin:end]
                    outputs += ids[begin:end]
            if is_done or len(outputs) >= request.max_outputs:
                finished.append(request)
            elif len(outputs) >= request.publish_at:
                known = min(request.num_known, request.computed)
                self._residence.publish(request, known, request.last_step)
        self.counters.generation_tokens += len(drawn.token_ids)
        return finished

    def _finish(self, request: Request) -> None:
        """End a request that drew its last token."""
        outputs = request.outputs
        # The last token's keys and values are never written: the slot was done before.
        known = min(request.num_known - 1, request.computed)
        self._residence.publish(request, known, request.last_step)
        is_stop = bool(outputs) and outputs[-1] in request.stop_ids
        reason = FinishReason("stop", matched=outputs[-1]) if is_stop else FinishReason("length")
        self._end(request, reason)

    def fail_all(self, message: str) -> None:
        """End all that runs: the runner failed, and what its slots hold is unknown.

        What settled steps have written stays cached, waiting requests go on. The next plan
        empties every slot, also those that are empty.
        """
        if self._flights:
            self.cache.withdraw_since(self._flights[0].step)
            self._flights.clear()
        self.cache.settle(self._step - 1)
        for request in list(self._running):
            self._fail(request, message)
        self._writer.forget()
        self._leaving = list(range(self.max_running))

    # Ends.

    def _fail(self, request: Request, message: str) -> None:
        """End a request that could not be computed."""
        self.counters.faults += 1
        request.is_failed = True
        self._end(request, FinishReason("error", message=message, code="computation_failed"))

    def _end(self, request: Request, reason: FinishReason, num_outputs: int | None = None) -> None:
        """End a request: the one place where its only ``Ended`` is made."""
        del self._live[request.id]
        request.is_over = True
        if request.slot >= 0:
            self._unseat(request)
        else:
            self._queue.remove(request)
        self._residence.forget_short()
        self.counters.count_end(reason.kind)
        self._ended.append(
            Ended(
                id=request.id,
                attempt=request.attempt,
                reason=reason,
                num_outputs=len(request.outputs) if num_outputs is None else num_outputs,
                cached_tokens=max(0, request.cached_tokens),
                num_retractions=request.num_retractions,
                queue_s=request.queue_s,
            )
        )

    def _refuse(self, submit: Submit, reason: FinishReason) -> None:
        """End a request that was never let in."""
        self.counters.count_end(reason.kind)
        self._ended.append(
            Ended(
                id=submit.id,
                attempt=submit.attempt,
                reason=reason,
                num_outputs=len(submit.output_ids),
            )
        )

    def _unseat(self, request: Request) -> None:
        """Take slot and pages of a running request."""
        self._running.remove(request)
        self._residence.move_out(request)
        heapq.heappush(self._free_slots, request.slot)
        self._leaving.append(request.slot)
        request.slot = -1
        request.query = 0
        self._steady_steps = 0
