"""The scheduler alone, with more than fits: who waits, who gives way, who is refused."""

from __future__ import annotations

import pytest

from headstock.wire.steps import (
    FROM_HOST,
    StepPlan,
)
from tests.unit.scheduler_table import Table, limits_of, prompt


def test_the_youngest_gives_its_pages_up_and_comes_back_first() -> None:
    table = Table(limits_of(pages=6))
    table.submit("a", prompt(7), 12)
    table.submit("b", prompt(7, 50), 12)
    while table.scheduler.counters.retractions == 0:
        table.step()
    table.submit("c", prompt(1, 90), 1)
    while not table.ended:
        plan = table.step()
    assert table.ended[0].id == "a"
    plan = table.planned()
    assert plan.admit[0].num_outputs > 0
    assert plan.host_ids[:1] == [50] or plan.admit[0].length > 0


def test_a_retracted_request_keeps_its_outputs() -> None:
    table = Table(limits_of(pages=6))
    table.submit("a", prompt(7), 12)
    table.submit("b", prompt(7, 50), 12)
    while len(table.ended) < 2:
        table.step()
    assert [table.end_of(name).num_outputs for name in "ab"] == [12, 12]
    assert table.end_of("b").num_retractions > 0


def test_a_page_is_left_for_each_request_that_runs() -> None:
    table = Table(limits_of(pages=6))
    table.submit("a", prompt(7), 1)
    table.submit("b", prompt(16, 100))
    table.step()
    assert table.scheduler.num_running == 0, "all but a page would do, and that is left to 'a'"
    assert table.end_of("a").num_outputs == 1
    table.step()
    assert table.scheduler.num_running == 1


def test_a_request_is_looked_at_again_only_when_its_next_page_is_full() -> None:
    table = Table(limits_of(step_tokens=8))
    table.submit("a", prompt(9))
    while table.scheduler.has_work:
        table.step()
    table.submit("b", prompt(9), 32)
    table.planned()
    (request,) = table.scheduler._running
    assert request.cached_tokens == 8
    assert request.look_at == 3, "two pages are cached, the third is full with the third output"


def test_no_request_overtakes_one_that_does_not_fit() -> None:
    table = Table(limits_of(pages=6))
    table.submit("a", prompt(12))
    table.submit("b", prompt(16, 100))
    table.submit("c", prompt(1, 50))
    table.step()
    assert table.scheduler.num_running == 1


def test_a_prompt_longer_than_the_context_ends_at_once() -> None:
    table = Table(limits_of(length=10))
    table.submit("a", prompt(10))
    reason = table.end_of("a").reason
    assert reason.code == "context_length_exceeded"
    assert "10 tokens" in reason.message
    assert "9 tokens" in reason.message


def test_a_prompt_of_the_whole_context_is_served_where_no_output_is_asked() -> None:
    table = Table(limits_of(length=10))
    table.submit("a", prompt(10), 0, logprobs=0, prompt_logprobs_from=0)
    table.planned()
    table.settle(done=True)
    ended = table.end_of("a")
    assert (ended.reason.kind, ended.num_outputs) == ("length", 0)


def test_a_prompt_larger_than_the_cache_ends_at_once() -> None:
    table = Table(limits_of(pages=2))
    table.submit("a", prompt(9))
    assert "holds 8" in table.end_of("a").reason.message


def test_outputs_are_limited_to_the_context() -> None:
    table = Table(limits_of(length=10))
    table.submit("a", prompt(6), None)
    assert table.planned().admit[0].max_outputs == 4


@pytest.mark.parametrize("bad", [[], [2**32 - 1], [1000]])
def test_a_prompt_that_the_model_cannot_read_ends_at_once(bad: list[int]) -> None:
    table = Table()
    table.submit("a", bad)
    assert table.end_of("a").reason.kind == "error"


def test_past_the_queue_limit_the_answer_is_when_to_come_back() -> None:
    table = Table(limits_of(slots=1), {"max_queued_requests": 2})
    for name in "abcd":
        table.submit(name, prompt(30, ord(name)), 2)
    assert table.end_of("d").reason.code == "queue_full"
    assert table.end_of("d").reason.retry_after_s == 1.0
    table.step()
    table.submit("e", prompt(30, ord("e")), 2)
    table.submit("f", prompt(30, ord("f")), 2)
    retry_after_s = table.end_of("f").reason.retry_after_s
    assert retry_after_s is not None
    assert 2.0 <= retry_after_s <= 4.0


def test_queued_tokens_are_bounded_too() -> None:
    table = Table(limits_of(slots=1), {"max_queued_tokens": 50})
    table.submit("a", prompt(30), 2)
    table.step()
    table.submit("b", prompt(30, 100), 2)
    table.submit("c", prompt(30, 200), 2)
    assert table.end_of("c").reason.code == "queue_full"


def test_requests_are_admitted_in_the_order_of_their_arrival() -> None:
    table = Table(limits_of(slots=3, pages=12))
    for number in range(30):
        table.submit(str(number), prompt(1 + number % 9, 20 * number), 3)
    admitted: list[int] = []
    while table.scheduler.has_work:
        plan = table.step()
        starts = [ids[0] // 20 for ids in _prompts(plan)]
        admitted += sorted(starts)
    assert admitted == list(range(30))


def _prompts(plan: StepPlan) -> list[list[int]]:
    """Return the host ids of each row that comes from the host."""
    ids = iter(plan.host_ids)
    rows = zip(plan.rows.query_max, plan.rows.source, strict=True)
    return [[next(ids) for _ in range(query)] for query, source in rows if source == FROM_HOST]
