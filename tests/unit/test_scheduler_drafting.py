"""When steps verify drafts: by what they cost and yield, and what is counted of it."""

from __future__ import annotations

from headstock.requests import SamplingParams, TokenIds
from headstock.scheduler import Scheduler
from headstock.wire.messages import Submit
from headstock.wire.steps import FROM_DEVICE, PageGroup, RunnerLimits, StepPlan, StepResult

K = 3


class Clocked:
    """A scheduler on a device whose steps take as long as the test says.

    Args:
        plain_s: What a step of one token a row takes.
        wide_s: What a step of K + 1 tokens a row takes.
        right: Of K drafts, how many are right.
    """

    def __init__(
        self,
        plain_s: float,
        wide_s: float,
        right: int,
        *,
        requests: int = 1,
        max_draft_rows: int = 16,
    ) -> None:
        group = PageGroup("full", 16, 1, 4096)
        limits = RunnerLimits(16, 256, 4096, 99, 1, [group], K, max_draft_rows=max_draft_rows)
        self.scheduler = Scheduler(limits)
        self.now_s = 0.0
        self.plain_s, self.wide_s, self.right = plain_s, wide_s, right
        self.ready = K
        for number in range(requests):
            params = SamplingParams(max_new_tokens=4000, sampling_seed=1)
            submit = Submit(id=str(number), prompt_ids=TokenIds([1 + number, 2, 3]), params=params)
            self.scheduler.submit(submit, self.now_s)

    def step(self) -> StepPlan:
        plan = self.scheduler.plan(self.now_s)
        assert plan is not None
        rows = plan.rows
        wide = [
            query > 1 and source == FROM_DEVICE
            for query, source in zip(rows.query_max, rows.source, strict=True)
        ]
        self.now_s += self.wide_s if any(wide) else self.plain_s
        counts = [1 + self.right if is_wide else 1 for is_wide in wide]
        count = len(counts)
        result = StepResult(
            plan.step,
            rows.slots,
            counts,
            [7] * sum(counts),
            [0] * count,
            drafts=[self.ready] * count,
        )
        self.scheduler.settle(result, self.now_s)
        self.scheduler.check()
        return plan

    def widths(self, count: int) -> list[int]:
        return [max(self.step().rows.query_max) for _ in range(count)]


def test_steps_are_wide_where_drafts_add_more_than_they_cost() -> None:
    found = Clocked(1.0, 1.5, right=2).widths(60)
    assert set(found[20:]) == {K + 1}


def test_steps_are_plain_where_drafts_are_wrong() -> None:
    found = Clocked(1.0, 1.5, right=0).widths(120)
    assert found[30:].count(K + 1) <= 2


def test_steps_are_plain_where_wide_ones_cost_too_much() -> None:
    found = Clocked(1.0, 3.5, right=2).widths(120)
    assert found[20:].count(K + 1) <= 2


def test_steps_are_plain_where_nothing_is_drafted_and_wide_as_soon_as_something_is() -> None:
    clocked = Clocked(1.0, 1.2, right=3)
    clocked.ready = 0
    clocked.step()
    assert set(clocked.widths(10)) == {1}
    clocked.ready = K
    clocked.step()
    assert clocked.widths(2) == [K + 1, K + 1]


def test_drafts_are_tried_again_when_they_have_become_right() -> None:
    clocked = Clocked(1.0, 1.5, right=0)
    clocked.widths(60)
    clocked.right = 3
    assert set(clocked.widths(700)[-100:]) == {K + 1}


def test_what_is_drafted_and_accepted_is_counted() -> None:
    clocked = Clocked(1.0, 1.1, right=2, requests=2)
    widths = clocked.widths(40)
    counters = clocked.scheduler.counters
    num_wide = widths[1:].count(K + 1)
    assert num_wide > 20
    assert counters.drafted_tokens == 2 * num_wide * K
    assert counters.accepted_tokens == 2 * num_wide * 2


def test_drafts_that_were_not_there_do_not_count() -> None:
    clocked = Clocked(1.0, 1.1, right=1)
    clocked.ready = 1
    num_wide = clocked.widths(30)[1:].count(K + 1)
    assert clocked.scheduler.counters.drafted_tokens == num_wide


def test_steps_are_plain_where_requests_are_more_than_a_wide_step_has_rows() -> None:
    for requests, width in ((4, K + 1), (5, 1)):
        clocked = Clocked(1.0, 1.1, right=3, requests=requests, max_draft_rows=4)
        assert set(clocked.widths(40)[20:]) == {width}
