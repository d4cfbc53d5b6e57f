"""What is told of a request that asked for it: why it waited, what it found, its chunks."""

from __future__ import annotations

import pytest

from headstock.scheduler.story import Notes, WaitClocks
from headstock.wire.requests import Story
from tests.unit.scheduler_table import PAGE, Table, limits_of


def run(table: Table) -> dict[str, Story | None]:
    """Run until nothing is left, and return the stories by id."""
    while table.plan() is not None:
        table.settle()
    while table.pending:
        table.settle()
    return {ended.id: ended.story for ended in table.ended}


def told(table: Table) -> dict[str, Story]:
    return {name: story for name, story in run(table).items() if story is not None}


def test_only_who_asks_is_told() -> None:
    table = Table()
    table.submit("quiet", [1, 2], count=2)
    table.submit("curious", [3, 4], count=2, wants_story=True)
    assert set(told(table)) == {"curious"}


def test_the_chunks_of_a_prompt_and_its_steps_are_told() -> None:
    table = Table(limits_of(step_tokens=8))
    table.submit("a", list(range(20)), count=3, wants_story=True)
    (story,) = told(table).values()
    assert story.chunk_ends == [8, 16, 20]
    assert story.chunk_steps == [1, 2, 3]
    assert story.chunk_times_s == sorted(story.chunk_times_s)
    assert story.last_step == 5  # the last chunk draws one token, two rows draw the others
    assert story.waits == {}


def test_who_waits_for_a_slot_is_told_so() -> None:
    table = Table(limits_of(slots=1))
    table.submit("first", [1] * 8, count=4)
    table.plan()
    table.submit("second", [2] * 8, count=1, wants_story=True)
    table.settle()
    (story,) = told(table).values()
    (ended,) = (each for each in table.ended if each.id == "second")
    assert max(story.waits, key=lambda name: story.waits[name]) == "slots"
    assert sum(story.waits.values()) == pytest.approx(ended.queue_s)


def test_who_waits_for_pages_is_told_so_and_what_was_evicted() -> None:
    table = Table(limits_of(pages=6, length=24))
    table.submit("old", [9] * 8, count=1)
    run(table)
    table.submit("first", [1] * 12, count=4)
    table.plan()
    table.submit("second", [2] * 12, count=1, wants_story=True)
    table.settle()
    story = told(table)["second"]
    assert story.waits["pages"] > 0
    assert story.evicted_pages > 0


def test_a_prefix_in_the_making_is_told_and_what_is_shared_with_others() -> None:
    table = Table()
    prompt = [5] * 16
    table.submit("first", [*prompt, 1], count=8)
    table.submit("second", [*prompt, 2], count=1, wants_story=True)
    table.plan()  # computes the prefix, once
    table.now_s += 1.0
    story = told(table)["second"]
    assert story.waits == {"prefix": 1.0}
    assert story.shared_tokens == 16
    (ended,) = (each for each in table.ended if each.id == "second")
    assert ended.cached_tokens == 16


def test_what_nobody_runs_with_any_more_is_found_and_not_shared() -> None:
    table = Table()
    table.submit("first", [5] * (2 * PAGE + 1), count=1)
    run(table)
    table.submit("second", [*[5] * (2 * PAGE), 7], count=1, wants_story=True)
    story = told(table)["second"]
    (ended,) = (each for each in table.ended if each.id == "second")
    assert (ended.cached_tokens, story.shared_tokens) == (2 * PAGE, 0)


def test_clocks_count_for_what_kept_requests_out() -> None:
    clocks = WaitClocks()
    clocks.advance(10.0)
    before = clocks.read()
    clocks.block("pages")
    clocks.advance(12.0)
    clocks.block("slots")
    clocks.advance(15.0)
    assert clocks.since(before) == {"pages": 2.0, "slots": 3.0}


def test_waits_are_never_more_than_the_time_in_the_queue() -> None:
    clocks = WaitClocks()
    clocks.block("slots")
    notes = Notes(clocks.read())
    notes.hold("prefix", 3.0)
    notes.hold("adapter", 4.0)  # what held it first is told
    clocks.advance(10.0)
    notes.admit(clocks, queue_s=8.0, now_s=5.0)
    assert notes.waits == {"prefix": 2.0, "slots": pytest.approx(6.0)}


def test_what_others_keep_requests_out_by_is_told() -> None:
    table = Table()
    table.scheduler.note_blocker("pause", 0.0)
    table.submit("a", [1, 2], count=1, wants_story=True)
    table.now_s = 5.0
    table.scheduler.note_blocker("step", table.now_s)
    assert told(table)["a"].waits == {"pause": 5.0}
