"""What the next step computes: rows of those who run, chunks of prompts, admissions.

Pages are :mod:`residence`'s, order is the policy's, columns are :mod:`writer`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from headstock.scheduler.budgets import Budget, StepTokens
from headstock.scheduler.counters import Counters
from headstock.scheduler.drafting import Drafting
from headstock.scheduler.encoder import EncoderBudget
from headstock.scheduler.flight import NO_QUERIES, Flight
from headstock.scheduler.policy import Policy
from headstock.scheduler.queue import WaitingQueue
from headstock.scheduler.register import Running
from headstock.scheduler.request import NEVER, Request
from headstock.scheduler.residence import Entry, Residence
from headstock.scheduler.story import PAGES, PREFIX, SLOTS, STEP, WaitClocks
from headstock.scheduler.writer import Changes, PlanWriter
from headstock.wire.steps import DRAW, FROM_DEVICE, RunnerLimits, StepPlan

MAX_PENDING = 128
"""Requests looked at in one step that wait for a prefix or an adapter's place; a look costs a
search in the tree."""


class Planner:
    """Plans steps, and knows those in flight.

    Args:
        limits: What the runner can hold.
        tokens: Tokens of a step.
        budgets: What admission asks for room besides tokens, slots and pages.
        policy: Who gives way.
        queue: Who waits.
        running: Who runs.
        residence: Their pages.
        encoder: Their images.
        counters: Where tokens and retractions are counted.
        drafting: Decides which steps verify drafts.
    """

    def __init__(
        self,
        limits: RunnerLimits,
        *,
        tokens: StepTokens,
        budgets: Sequence[Budget],
        policy: Policy,
        queue: WaitingQueue,
        running: Running,
        residence: Residence,
        encoder: EncoderBudget,
        counters: Counters,
        drafting: Drafting,
    ) -> None:
        self.flights: deque[Flight] = deque()
        self.step = 1
        """Number of the next plan."""
        self.waits = WaitClocks()
        """What has kept waiting requests out."""
        self._now_s = 0.0
        self._drafting = drafting
        self._has_drafts = limits.max_drafts > 0
        self._is_wide = False
        self._tokens = tokens
        self._budgets: list[Budget] = [tokens, running.slots, *budgets]
        self._policy = policy
        self._queue = queue
        self._running = running
        self._residence = residence
        self._encoder = encoder
        self._counters = counters
        self._cache = cache = residence.cache
        self._token_groups = [group.index for group in cache.tokens]
        self._state_groups = [group.index for group in cache.states]
        self._writer = PlanWriter(cache.page_tokens, has_drafts=limits.max_drafts > 0)
        self._hosted: list[Request] = []
        self._steady_steps = 0
        self._steady_queries = NO_QUERIES
        self._num_left = 0

    def plan(self, now_s: float) -> StepPlan | None:
        """Plan the next step, which must then be launched.

        Returns:
            The plan, or None: nothing to do before a step in flight settles or a message comes.
        """
        running, was_wide = self._running, self._is_wide
        if self._has_drafts:
            self._is_wide = self._drafting.is_wide(running.requests, len(self._queue))
        # As far as is known without trying, nothing can be admitted.
        is_shut = not self._queue or running.is_full or self._residence.is_short
        if is_shut and self._steady_steps > 0 and running.num_left == self._num_left:
            plan = None
            if not self._steady_queries:
                plan = self._plan_steady()
            elif self._is_wide == was_wide:
                plan = self._plan_steady_drafts(now_s)
            if plan is not None:
                return plan
        return self._plan_anew(now_s)

    def forget(self) -> None:
        """Give up what is in flight; the next plan is written from scratch."""
        self.flights.clear()
        self._writer.forget()
        self._encoder.forget()
        self._steady_steps = 0

    # The last plan again.

    def _plan_steady(self) -> StepPlan | None:
        """Plan one more token for each row of the last plan; None: not enough pages."""
        writer = self._writer
        kv_max = [length + 1 for length in writer.kv_max]
        page_tokens = self._cache.page_tokens
        rows = writer.rows
        # A row needs a page when its new token is the first of one. Lengths leave the remainder 1
        # then, but for pages of one token, where each is the first.
        growing = [rows[i] for i, length in enumerate(kv_max) if length % page_tokens == 1]
        if page_tokens == 1:
            growing = rows
        changes = None
        if growing:
            changes = self._changes()
            ends = [request.computed + 1 for request in growing]
            if not self._residence.grow(growing, ends, changes):
                return None
        step = self.step
        self.step += 1
        for request in rows:
            request.computed += 1
            request.drawn += 1
            request.last_step = step
        self._steady_steps -= 1
        plan = writer.write_steady(step, kv_max, changes)
        self.flights.append(Flight(step, rows, plan.rows.slots, rows, len(rows), NO_QUERIES))
        return plan

    def _plan_steady_drafts(self, now_s: float) -> StepPlan | None:
        """Plan the rows of the last plan again, where some may have drafts.

        What they drew since is known by now or not, so each row's bound is computed anew.

        Returns:
            None: not enough pages, or a row has fewer tokens now.
        """
        writer = self._writer
        rows, queries = writer.rows, writer.query_max
        kv_max: list[int] = []
        growing: list[Request] = []
        ends: list[int] = []
        page_tokens = self._cache.page_tokens
        for request, query in zip(rows, queries, strict=True):
            if request.drawn >= request.draw_limit:
                return None
            end = request.computed + query
            if end > request.kv_limit:
                # Near its end: the bound may be past what the row can come to.
                if request.draw_query(query) < query:
                    return None
                end = min(request.computed, request.last_begin) + query
            kv_max.append(end)
            if end > len(request.pages) * page_tokens:
                growing.append(request)
                ends.append(end)
        changes = self._changes()
        if growing and not self._residence.grow(growing, ends, changes):
            return None
        step = self.step
        self.step += 1
        for request, query in zip(rows, queries, strict=True):
            request.computed += query
            request.drawn += 1
            request.last_step = step
        self._steady_steps -= 1
        plan = writer.write_steady(step, kv_max, changes)
        flight = Flight(step, rows, plan.rows.slots, rows, sum(queries), queries, now_s)
        self.flights.append(flight)
        return plan

    # A new plan.

    def _plan_anew(self, now_s: float) -> StepPlan | None:
        """Plan a step from what every request still needs."""
        changes = self._changes()
        self._now_s = now_s
        self._hosted = []
        self._tokens.begin()
        self._encoder.begin()
        width = self._choose_width()
        if not self._make_room(changes, width):
            return None
        self._plan_running(width, changes)
        self._admit(changes, now_s)
        members = [request for request in self._running.requests if request.query]
        if not members:
            return self._plan_after_retraction(now_s)
        changes.leave = self._running.take_leaving()
        encoder = self._encoder.take()
        plan = self._writer.write(self.step, members, self._hosted, changes, *encoder)
        self._launch(plan, now_s)
        return plan

    def _choose_width(self) -> int:
        """Return how many tokens a row from the device computes, at most.

        Every running request gets a token at least; drafts share what is left.
        """
        if not self._is_wide:
            return 1
        return min(self._drafting.width, max(1, self._tokens.limit // max(1, len(self._running))))

    def _changes(self) -> Changes:
        return Changes(self._token_groups, self._state_groups)

    def _plan_after_retraction(self, now_s: float) -> StepPlan | None:
        """Plan anew where no row could be planned; None: nothing is to be done now.

        Chunks take pages of window groups as they go. When none gets any and nothing is in flight,
        one request must give way.
        """
        if self.flights or not self._running:
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
        page_tokens = self._cache.page_tokens
        if not self._cache.tokens:
            return True
        while True:
            growing = [
                request
                for request in self._running.requests
                if request.computed + width > len(request.pages) * page_tokens
                and request.drawn < request.draw_limit
                and request.computed >= request.host_end
            ]
            if not self._has_drafts:
                ends = [request.computed + 1 for request in growing]
            else:
                # ``computed`` counts drafts that may prove wrong: where it is past ``last_begin``,
                # no row can begin, so pages are taken up to what the last one can reach.
                ends = [
                    min(request.computed, request.last_begin) + request.draw_query(width)
                    for request in growing
                ]
            if not growing or self._residence.grow(growing, ends, changes):
                return True
            if self.flights:
                return False
            self._retract_one()

    def _plan_running(self, width: int, changes: Changes) -> None:
        """Set what each running request computes.

        Args:
            width: Tokens that a row from the device computes, at most.
            changes: Where page table entries are noted.
        """
        has_states, has_drafts = bool(self._cache.states), width > 1
        chunked: list[Request] = []
        budget = self._tokens.left
        for request in self._running.requests:
            if request.computed < request.host_end:
                request.query = 0
                chunked.append(request)
            elif request.drawn < request.draw_limit:
                query = request.draw_query(width) if has_drafts and request.num_drafts else 1
                request.query = query
                if has_states and request.is_turning:
                    self._residence.turn(request, changes)
                request.computed += query
                request.drawn += 1
                budget -= query
            else:
                request.query = 0
        self._tokens.left = budget
        for request in chunked:
            if self._tokens.left == 0:
                break
            self._plan_chunk(request, changes)

    def _plan_chunk(self, request: Request, changes: Changes) -> None:
        """Plan as many host tokens of ``request`` as the step has room for."""
        begin = request.computed
        end = begin + self._tokens.room_for(request, request.host_end - begin)
        cut = NEVER
        if request.cuts:
            cut = request.cuts[-1]
            end = min(end, cut)
        if request.media:
            end = self._encoder.reach(request, end)
        if self._cache.windows:
            end = self._encoder.whole(request, self._residence.extend(request, end, changes))
        request.query = end - begin
        if not request.query:
            if request.media and self._encoder.is_split(request, self._tokens.left):
                self._tokens.left = 0  # those behind it wait too, or it might never find room
            return
        self._tokens.spend(request, end - begin)
        if request.is_turning:
            self._residence.turn(request, changes)
        request.computed = end
        self._counters.prefill_tokens += end - begin
        if request.notes is not None:
            request.notes.add_chunk(self.step, end, self._now_s - request.submitted_s)
        self._hosted.append(request)
        is_last = end == request.host_end
        if is_last:
            request.drawn += 1
        request.score = 0
        if request.score_next < len(request.prompt):
            scored_end = end if is_last else end + 1
            request.score = max(0, scored_end - request.score_next)
            request.score_next += request.score
        self._residence.publish(request, end, self.step)
        if end == cut:
            request.cuts.pop()
            self._residence.checkpoint(request, end, self.step)
        if self._state_groups:
            request.is_turning = any(table.is_turning for table in request.tables.states)

    def _admit(self, changes: Changes, now_s: float) -> None:
        """Admit waiting requests in the policy's order while there is room for them.

        No request overtakes one that does not fit. One that waits for a prefix in the making may
        be overtaken, and for some time one that waits for an adapter's place.
        """
        residence = self._residence
        residence.forget_short()
        self.waits.advance(now_s)
        if self._queue and self._running.is_full:
            self.waits.block(SLOTS)
        elif self._queue:
            self.waits.block(self._admit_in_order(changes, now_s))
        else:
            self.waits.block(STEP)

    def _admit_in_order(self, changes: Changes, now_s: float) -> str:
        """Admit those that there is room for; returns what keeps the others out."""
        queue, residence, running = self._queue, self._residence, self._running.requests
        num_pending = 0
        for request in queue.order(residence.cached_grains):
            if num_pending == MAX_PENDING:
                return PREFIX
            short = self._short_of(request)
            if short is None:
                entry = residence.move_in(request, self.step, len(running))
                if entry is Entry.NO_PAGES:
                    return PAGES
            elif not short.can_be_passed or queue.num_admitted >= request.overtaken_at:
                return short.name
            else:
                entry = Entry.PREFIX_PENDING
            if entry is Entry.PREFIX_PENDING:
                num_pending += 1
                if request.notes is not None:
                    request.notes.hold(PREFIX if short is None else short.name, now_s)
                continue
            self._seat(request, now_s)
            changes.admit(request)
            self._plan_chunk(request, changes)
            if request.computed < request.host_end:
                residence.promise(request)
        return STEP

    def _short_of(self, request: Request) -> Budget | None:
        """Return the first budget that has no room for ``request``, if any."""
        num_tokens = request.num_known
        for budget in self._budgets:
            if not budget.room_for(request, num_tokens):
                return budget
        return None

    def _seat(self, request: Request, now_s: float) -> None:
        """Give ``request``, which has its pages, a slot."""
        self._queue.admit(request)
        self._running.seat(request)
        if request.num_drafts:
            self._drafting.admit(request)
        if request.cached_tokens < 0:
            request.cached_tokens = min(request.computed, len(request.prompt))
            request.queue_s = now_s - request.submitted_s
            if request.notes is not None:
                request.notes.admit(self.waits, request.queue_s, now_s)
            self._counters.prompt_tokens += len(request.prompt)
            self._counters.cached_tokens += request.cached_tokens

    def _launch(self, plan: StepPlan, now_s: float) -> None:
        """Note that ``plan`` is in flight, and how often the next can be the same."""
        self.step += 1
        rows = self._writer.rows
        for request in rows:
            request.last_step = plan.step
        sampled = self._writer.drawing()
        num_tokens = sum(plan.rows.query_max)
        queries = self._draft_queries(sampled, plan)
        flight = Flight(plan.step, rows, plan.rows.slots, sampled, num_tokens, queries, now_s)
        self.flights.append(flight)
        self._steady_queries = queries
        self._num_left = self._running.num_left
        is_steady = not plan.host_ids and len(sampled) == len(rows)
        if self._cache.states and any(request.is_turning for request in rows):
            is_steady = False
        self._steady_steps = (
            min(request.draw_limit - request.drawn for request in rows) if is_steady else 0
        )

    def _draft_queries(self, sampled: list[Request], plan: StepPlan) -> list[int]:
        """Return the tokens of each row that draws, 1 for those from the host; empty: no drafts."""
        if not self._has_drafts or not any(request.num_drafts for request in sampled):
            return NO_QUERIES
        is_exact = not any(flight.is_wide for flight in self.flights)
        if is_exact and self._drafting.is_crowded(len(self._running) + len(self._queue)):
            # No row has drafts verified for a while, and no bound shrinks: as if there were none.
            for request in sampled:
                request.num_ready = 0
            return NO_QUERIES
        rows = plan.rows
        columns = zip(rows.query_max, rows.source, rows.yields, strict=True)
        return [
            query if source == FROM_DEVICE else 1
            for query, source, yields in columns
            if yields == DRAW
        ]

    def retract_all(self) -> None:
        """Retract every running request; they keep their places before those that never ran."""
        assert not self.flights, "retraction needs settled outputs"
        for request in list(self._running.requests):
            self._retract(request)

    def _retract(self, request: Request) -> None:
        request.num_retractions += 1
        self._counters.retractions += 1
        self._running.unseat(request)
        self._queue.add(request)

    def _retract_one(self) -> None:
        """Retract the request that gives way first; it waits again and keeps what it has drawn.

        One request alone fits, but in a shared arena its pages may lie in so many slabs that other
        groups find none: then it begins anew in an empty cache.
        """
        assert not self.flights, "retraction needs settled outputs"
        is_alone = len(self._running) == 1
        assert not is_alone or self._cache.arena is not None, "one request alone must fit"
        request = self._policy.victim(self._running.requests)
        self._retract(request)
        if is_alone:
            self._cache.flush()
