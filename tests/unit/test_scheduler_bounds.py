"""The scheduler alone, with drafts: bounds of rows grow by what may be drawn, and shrink."""

from __future__ import annotations

import msgspec
import pytest

from headstock.scheduler import Drawn
from headstock.wire.steps import (
    FROM_DEVICE,
    StepResult,
)
from tests.unit.scheduler_table import Table, limits_of, prompt


def drafts_of(max_drafts: int, **fields: int) -> Table:
    return Table(msgspec.structs.replace(limits_of(**fields), max_drafts=max_drafts))


def settle_counts(table: Table, counts: list[int]) -> Drawn:
    """Settle the oldest step, of which each row drew so many tokens."""
    plan = table.pending.pop(0)
    done = [0] * len(counts)
    slots, drafts = plan.rows.slots, table.drafts_for(plan.rows.slots)
    result = StepResult(plan.step, slots, counts, [7] * sum(counts), done, drafts=drafts)
    drawn = table.scheduler.settle(result, table.now_s)
    table.scheduler.check()
    return drawn


def test_a_row_with_drafts_is_bounded_by_what_may_be_drawn() -> None:
    table = drafts_of(3)
    table.submit("a", prompt(5), 40)
    table.step()
    first, second = table.planned(), table.planned()
    assert (first.rows.query_max, first.rows.kv_max) == ([4], [9])
    assert (second.rows.query_max, second.rows.kv_max) == ([4], [13])
    assert (first.admit, first.rows.source) == ([], [FROM_DEVICE])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_bound_shrinks_by_what_proved_wrong(count: int) -> None:
    table = drafts_of(3)
    table.submit("a", prompt(5), 40)
    table.step()
    table.planned()
    table.planned()
    assert settle_counts(table, [count]).counts == [count]
    # Its length is 5 + count; one step more is in flight, and this one comes on top.
    assert table.planned().rows.kv_max == [5 + count + 4 + 4]


def test_pages_taken_ahead_are_kept_when_the_bound_shrinks() -> None:
    table = drafts_of(3)
    table.submit("a", prompt(5), 40)
    table.step()
    appended = 0
    for _ in range(4):
        appended += len(table.planned().append.pages)
        settle_counts(table, [1])
    # Rows that end at 9 to 12 share the third page; the next one ends at 13.
    assert appended == 1
    assert len(table.planned().append.pages) == 1


def test_a_row_that_draws_more_than_it_may_is_a_broken_runner() -> None:
    for max_drafts, count in ((0, 2), (2, 4)):
        table = drafts_of(max_drafts)
        table.submit("a", prompt(5), 40)
        table.step()
        table.planned()
        with pytest.raises(AssertionError, match=f"drew {count} tokens"):
            settle_counts(table, [count])


def test_a_row_is_planned_until_it_surely_has_all_its_outputs() -> None:
    table = drafts_of(3)
    table.submit("a", prompt(5), 4)
    table.step()
    for count in (1, 1):
        assert table.planned().rows.query_max == [4]
        settle_counts(table, [count])
    assert table.planned().rows.kv_max == [11]
    assert table.plan() is None


def test_drafts_share_the_tokens_of_a_step() -> None:
    table = drafts_of(3, step_tokens=6, slots=4)
    for name in "abc":
        table.submit(name, prompt(1, ord(name)), 20)
    table.step()
    assert table.planned().rows.query_max == [2, 2, 2]
