"""The scheduler alone: which requests share a prefix, and which wait for one."""

from __future__ import annotations

import pytest

from headstock.wire.steps import (
    Fault,
)
from tests.unit.scheduler_table import PAGE, Table, limits_of, prompt


def test_requests_that_arrive_together_wait_for_their_common_prefix() -> None:
    table = Table(limits_of(slots=16, step_tokens=600, length=700, pages=300))
    for number in range(16):
        table.submit(str(number), [*prompt(512), 900 + number])
    first, second = table.planned(), table.planned()
    assert first.rows.query_max == [513]
    assert second.rows.query_max == [1] * 16
    shared = [pages for pages in second.append.pages if pages in first.append.pages]
    assert len(shared) == 15 * 512 // PAGE


def test_requests_wait_while_their_prefix_is_computed_in_chunks() -> None:
    table = Table(limits_of(step_tokens=8))
    table.submit("a", [*prompt(24), 100])
    table.submit("b", [*prompt(24), 101])
    rows = [table.planned().rows.query_max for _ in range(4)]
    assert rows == [[8], [8], [8], [1, 1]]


def test_a_common_start_shorter_than_a_page_is_not_waited_for() -> None:
    table = Table()
    table.submit("a", [1, 2, 3, 10, 11])
    table.submit("b", [1, 2, 3, 20, 21])
    assert table.planned().rows.query_max == [5, 5]


def test_others_may_overtake_who_waits_for_a_prefix() -> None:
    table = Table()
    table.submit("a", [*prompt(8), 100])
    table.submit("b", [*prompt(8), 101])
    table.submit("c", prompt(5, 50))
    assert table.planned().rows.query_max == [9, 5]


def test_who_waits_for_the_prefix_of_an_aborted_request_goes_on() -> None:
    table = Table(limits_of(step_tokens=8))
    table.submit("a", [*prompt(24), 100])
    table.submit("b", [*prompt(24), 101])
    table.planned()
    table.scheduler.abort("a")
    assert table.planned().rows.kv_max == [16]


def test_namespaces_share_no_pages() -> None:
    table = Table()
    table.submit("a", prompt(9), namespace="x")
    table.submit("b", prompt(9), namespace="y")
    assert table.planned().rows.query_max == [9, 9]


def test_a_fully_cached_prompt_still_computes_its_last_token() -> None:
    table = Table()
    for name in "ab":
        table.submit(name, prompt(8), 1)
        plan = table.step()
    assert plan.rows.query_max == [4]
    assert table.end_of("b").cached_tokens == 4


def test_generated_pages_are_shared_too() -> None:
    table = Table()
    table.submit("a", prompt(8), 9)
    for _ in range(9):
        table.step()
    table.submit("b", prompt(8) + [7] * 9, 1)
    assert table.planned().admit[0].length == 16


def second_turn(table: Table, name: str, prompt_ids: list[int], drawn: list[int]) -> int:
    """Return how many tokens the turn after ``prompt_ids`` and ``drawn`` finds."""
    table.submit(name, [*prompt_ids, *drawn, 99], 1)
    table.step()
    return table.end_of(name).cached_tokens


@pytest.mark.parametrize("common", [0, 1, 4, 6])
def test_second_turns_of_simultaneous_samples_find_all_that_each_wrote(common: int) -> None:
    """Whether the samples part in their first page, at its end, or after a page that all wrote."""
    table = Table(limits_of(depth=1))
    first = prompt(2 * PAGE)
    names = "abc"
    for name in names:
        table.submit(name, first, 13, logprobs=-1)
    samples: dict[str, list[int]] = {name: [] for name in names}
    while table.scheduler.has_work:
        plan = table.planned()
        drawn = table.settle_with(lambda name, at: 7 if at < common else 20 + ord(name) - 97)
        assert plan is not None
        for request, token in drawn:
            samples[request].append(token)
    assert {len(drawn) for drawn in samples.values()} == {13}
    # 12 of the 13 have their keys and values in the cache: the last one was never computed.
    found = [second_turn(table, f"{name}2", first, samples[name]) for name in names]
    assert found == [2 * PAGE + 12] * 3


def test_a_twin_of_a_withdrawn_page_stays_private() -> None:
    table = Table(limits_of(depth=1))
    for name in "ab":
        table.submit(name, prompt(2 * PAGE), 30)
    for _ in range(8):
        table.step()
    table.planned()
    table.settle(faults=[Fault(0, "broken")])
    while table.scheduler.has_work:
        table.step()
    table.scheduler.flush()
    assert table.scheduler.cache.num_free == table.scheduler.cache.num_total


def test_without_the_prefix_cache_no_request_waits_or_shares() -> None:
    table = Table(settings={"prefix_cache": False})
    table.submit("a", prompt(9))
    table.submit("b", prompt(9))
    assert table.planned().rows.query_max == [9, 9]


def test_prompt_logprobs_limit_the_cached_prefix() -> None:
    table = Table()
    table.submit("a", prompt(20), 1)
    table.step()
    table.submit("b", prompt(20), 1, prompt_logprobs_from=9)
    plan = table.planned()
    assert plan.admit[0].length == 8
    assert plan.rows.score == [11]


def test_prompt_logprobs_of_chunks_add_up_to_the_prompt() -> None:
    table = Table(limits_of(step_tokens=8))
    table.submit("a", prompt(20), 1, prompt_logprobs_from=0)
    plans = [table.planned() for _ in range(3)]
    assert [plan.rows.score[0] for plan in plans] == [8, 8, 3]
    assert [len(plan.host_ids) for plan in plans] == [9, 9, 4]


def test_rows_that_share_a_prefix_come_with_its_tree() -> None:
    table = Table()
    for name in "abc":
        table.submit(name, [*prompt(8), ord(name)])
    table.step()
    tree = table.planned().tree
    assert tree is not None
    assert (tree.row_begin, tree.row_end) == ([0], [3])
    assert (tree.kv_begin, tree.kv_end) == ([0], [8])
    assert table.planned().tree is None
