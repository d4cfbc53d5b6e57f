"""Whether the next step verifies drafts: by what steps have cost and yielded so far.

A *wide* step computes a row's drafts with its last token; a *plain* one computes the last token
alone. Wide steps take longer, the more so the more rows there are. What they take is measured as
they run, on whatever device this is, so there is nothing to set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstock.scheduler.counters import Counters
from headstock.scheduler.flight import Flight
from headstock.scheduler.request import Request
from headstock.wire.steps import RunnerLimits, StepResult

MEASURED = 4
"""Steps of a kind that must have run before what they cost is believed: the first are slow."""
WEIGHT = 0.125
"""Of the latest step in a running mean. Dimensionless."""
FIRST_PROBE, LAST_PROBE = 64, 1024
"""Plain steps in a row, in spite of drafts, after which a wide one is tried again."""


@dataclass(slots=True)
class StepCost:
    """What steps of one kind take: the least at first, then a running mean. Seconds."""

    count: int = 0
    seconds: float = 0.0

    def note(self, seconds: float) -> None:
        """Take in that a step took ``seconds``."""
        if self.count == 0:
            self.seconds = seconds
        elif self.count < MEASURED:
            self.seconds = min(self.seconds, seconds)
        else:  # a step that waited for something else says little of its kind
            self.seconds += (min(seconds, 2 * self.seconds) - self.seconds) * WEIGHT
        self.count += 1

    @property
    def is_known(self) -> bool:
        """Whether enough steps have run."""
        return self.count >= MEASURED


class Drafting:
    """Decides the width of steps.

    Args:
        limits: What the runner can hold.
        counters: Where drafted and accepted tokens are counted.
    """

    def __init__(self, limits: RunnerLimits, counters: Counters) -> None:
        self.width = 1 + limits.max_drafts
        self._max_rows = limits.max_draft_rows
        self._counters = counters
        self._gain = limits.max_drafts / 2
        self._costs: dict[int, tuple[StepCost, StepCost]] = {}
        self._num_declined = 0
        self._probe_after = FIRST_PROBE
        self._settled_s = 0.0

    def admit(self, request: Request) -> None:
        """Begin with a request that has no drafts yet; it is expected to do as others did."""
        request.num_ready = 0
        request.draft_gain = self._gain

    def is_crowded(self, num_requests: int) -> bool:
        """Whether so many requests, running and waiting, rule wide steps out."""
        return num_requests > self._max_rows

    def is_wide(self, requests: Sequence[Request], num_waiting: int) -> bool:
        """Whether a step of ``requests`` is to verify the drafts that they have.

        It is where the tokens that drafts are expected to add are more, as a share of the rows,
        than what a wide step costs in addition, as a share of a plain one. What is not known yet
        is tried. Where requests, with those that may be admitted, are more than the rows of a wide
        step, it is plain.
        """
        if self.is_crowded(len(requests) + num_waiting):
            return False
        gain = 0.0
        for request in requests:
            if request.num_ready and request.drawn < request.draw_limit:
                gain += min(request.draft_gain, request.num_ready)
        if gain == 0.0:
            return False
        plain, wide = self._costs_of(len(requests))
        if not wide.is_known:
            return True
        if not plain.is_known:
            return False
        if gain * plain.seconds > len(requests) * (wide.seconds - plain.seconds):
            self._num_declined = 0
            self._probe_after = FIRST_PROBE
            return True
        self._num_declined += 1
        if self._num_declined < self._probe_after:
            return False
        self._num_declined = 0
        self._probe_after = min(2 * self._probe_after, LAST_PROBE)
        return True

    def settle(self, flight: Flight, result: StepResult) -> None:
        """Take in what the drafts of ``flight`` were worth, and who has drafts now."""
        drafts = result.drafts or [0] * len(flight.sampled)
        columns = zip(flight.sampled, flight.queries, result.counts, drafts, strict=True)
        for request, query, count, num_ready in columns:
            if not request.num_drafts or request.is_over:
                continue
            num_drafted = min(query - 1, request.num_ready)
            if num_drafted and count:
                num_accepted = min(count - 1, num_drafted)
                request.num_drafted += num_drafted
                request.num_accepted += num_accepted
                self._counters.drafted_tokens += num_drafted
                self._counters.accepted_tokens += num_accepted
                request.draft_gain += (num_accepted - request.draft_gain) * WEIGHT
                self._gain += (num_accepted - self._gain) * WEIGHT / len(flight.sampled)
            request.num_ready = num_ready

    def measure(self, flight: Flight, now_s: float) -> None:
        """Take in how long ``flight`` took, if it tells something: it settles ``now_s``.

        Steps are counted from when the one before settled, if they were launched before that.
        """
        began_s = max(flight.planned_s, self._settled_s)
        self._settled_s = now_s
        queries = flight.queries
        if not queries or flight.num_tokens != sum(queries) or now_s <= began_s:
            return
        self._costs_of(len(queries))[flight.is_wide].note(now_s - began_s)

    def _costs_of(self, num_rows: int) -> tuple[StepCost, StepCost]:
        """Return what plain and wide steps of about so many rows cost."""
        bucket = num_rows.bit_length()
        costs = self._costs.get(bucket)
        if costs is None:
            costs = self._costs[bucket] = (StepCost(), StepCost())
        return costs
