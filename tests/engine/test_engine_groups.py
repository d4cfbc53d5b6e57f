"""Models with several kinds of state: windows, recurrent states, and what a hit costs there."""

from __future__ import annotations

import itertools

import pytest
from client import Client
from null_runner import NullRunner, full, shared, state, window

from headstock.cache import pages
from headstock.wire.steps import STATE_IN, STATE_OUT, PageGroup, StepPlan


def lengths(plans: list[StepPlan]) -> list[int]:
    return [admit.length for plan in plans for admit in plan.admit]


def held(client: Client, kind: str) -> int:
    """Return how many pages of the group of this kind live requests hold."""
    (group,) = [group for group in client.engine.scheduler.cache.groups if group.facts.kind == kind]
    return group.pool.num_total - group.num_available


def served(client: Client, name: str, prompt: list[int], count: int = 4, **fields: object) -> int:
    """Serve a request alone; returns how many of its tokens were cached."""
    record = client.submit(name, prompt, count, **fields)
    client.finish()
    client.check_record(record)
    assert record.ended is not None
    return record.ended.cached_tokens


# Windows.


def test_what_the_window_has_left_behind_is_given_back_while_the_request_runs() -> None:
    runner = NullRunner(max_length=200, depth=1, groups=[full(), window(8)])
    client = Client(runner)
    client.submit("a", [1, 2, 3], 150)
    client.step(120)
    assert held(client, "full") > 29
    assert held(client, "window") <= 4


def test_a_long_prompt_holds_a_window_and_a_chunk() -> None:
    groups = [full(4, 300), window(8, 4, 9)]
    client = Client(NullRunner(max_length=1000, max_step_tokens=16, groups=groups))
    record = client.submit("a", list(range(40)) * 20, 4)
    client.finish()
    assert record.token_ids == client.expected(record)


def test_many_long_requests_share_a_small_window_group() -> None:
    groups = [full(4, 400), window(8, 4, 12)]
    client = Client(NullRunner(max_length=1000, max_step_tokens=64, groups=groups))
    records = [client.submit(str(n), [n, *range(40), *range(40)], 40) for n in range(6)]
    client.finish()
    assert [record.token_ids for record in records] == [client.expected(r) for r in records]
    client.check_idle()


@pytest.mark.parametrize("groups", [[full(), window(8)], [window(8)]])
def test_a_hit_needs_only_the_windows_last_tokens(groups: list) -> None:
    client = Client(NullRunner(groups=groups))
    served(client, "a", list(range(30)))
    assert served(client, "b", list(range(30))) == 28


def test_what_a_window_has_left_behind_can_still_be_hit_while_there_is_room() -> None:
    client = Client(NullRunner(groups=[full(), window(8)]))
    served(client, "a", list(range(40)))
    assert served(client, "b", [*range(20), 49]) == 20


def test_a_prefix_whose_window_is_gone_is_no_hit_and_is_filled_again() -> None:
    groups = [full(4, 100), window(8, 4, 8)]
    client = Client(NullRunner(groups=groups))
    served(client, "a", list(range(40)))
    assert served(client, "b", [*range(20), 49], 1) == 0
    assert served(client, "c", [*range(20), 48], 1) == 20


def test_a_windows_tombstones_are_filled_while_another_request_has_the_full_pages() -> None:
    groups = [full(4, 100), window(8, 4, 14)]
    client = Client(NullRunner(groups=groups))
    client.submit("a", list(range(40)), 20)
    client.step(8)
    served_b = client.submit("b", [*range(20), 49], 1)
    client.step(4)
    served_c = client.submit("c", [*range(20), 48], 1)
    client.step(4)
    assert served_b.ended is not None
    assert served_c.ended is not None
    assert (served_b.ended.cached_tokens, served_c.ended.cached_tokens) in ((0, 20), (20, 20))
    client.finish()


# States.


def test_an_equal_prompt_costs_at_most_a_grain() -> None:
    client = Client(NullRunner(groups=[full(), state()]))
    served(client, "a", list(range(30)))
    assert served(client, "b", list(range(30))) == 28
    assert served(client, "c", [*range(30), 48, 49]) == 28


@pytest.mark.parametrize("max_drafts", [0, 3])
@pytest.mark.parametrize("kinds", [["full"], ["full", "window"], ["full", "state"]])
def test_drafts_cost_no_hit(max_drafts: int, kinds: list[str]) -> None:
    made = {"full": full(), "window": window(8), "state": state()}
    groups = [made[kind] for kind in kinds]
    client = Client(NullRunner(groups=groups, max_drafts=max_drafts))
    served(client, "a", list(range(30)))
    assert served(client, "b", list(range(30))) == 28


def test_where_a_second_request_parts_from_the_first_the_third_has_a_hit() -> None:
    client = Client(NullRunner(groups=[full(), state()]))
    served(client, "a", [*range(20), 45, 46, 47, 48, 49])
    assert served(client, "b", [*range(20), 41, 42]) == 0
    assert served(client, "c", [*range(20), 43, 44]) == 20


def test_states_alone_are_found_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "STATE_GRAIN", 4)
    client = Client(NullRunner(groups=[state()]))
    served(client, "a", [*range(20), 45, 46, 47, 48, 49])
    assert served(client, "b", [*range(20), 41, 42]) == 0
    assert served(client, "c", [*range(20), 43, 44]) == 20
    assert served(client, "d", [*range(20), 45, 46, 47, 48, 44]) == 24


def test_checkpoints_are_kept_every_so_many_tokens_on_request() -> None:
    client = Client(NullRunner(groups=[full(), state()]), checkpoint_tokens=8)
    served(client, "a", list(range(40)))
    assert served(client, "b", [*range(18), 49]) == 16


def test_a_checkpoint_is_read_without_a_copy() -> None:
    runner = NullRunner(groups=[full(), state()])
    client = Client(runner)
    served(client, "a", list(range(30)), 6)
    begin = len(runner.plans)
    served(client, "b", list(range(30)), 6)
    entries = [
        [
            (index, page)
            for group, index, page in zip(
                plan.append.groups, plan.append.indexes, plan.append.pages, strict=True
            )
            if group == 1
        ]
        for plan in runner.plans[begin:]
    ]
    (first, checkpoint), (second, own) = entries[0]
    assert (first, second) == (STATE_IN, STATE_OUT)
    assert checkpoint != own
    assert entries[1] == [(STATE_IN, own)]
    assert not any(entries[2:])
    assert all(plan.copies.pages == [] for plan in runner.plans if hasattr(plan.copies, "pages"))


def test_a_prompts_chunk_ends_where_its_state_is_kept() -> None:
    runner = NullRunner(groups=[full(), state()])
    client = Client(runner)
    served(client, "a", list(range(30)))
    assert [plan.rows.kv_max for plan in runner.plans[:2]] == [[28], [30]]


def test_without_a_page_for_a_checkpoint_there_is_none_and_all_goes_on() -> None:
    client = Client(NullRunner(groups=[full(), state(num_pages=2)]))
    for name in "abc":
        assert served(client, name, list(range(30))) == 0
    client.check_idle()


def test_checkpoints_give_way_to_requests() -> None:
    client = Client(NullRunner(num_slots=4, groups=[full(), state(num_pages=5)]))
    for number in range(4):
        served(client, f"a{number}", [number, *range(20)])
    records = [client.submit(f"b{n}", [n, *range(20)], 9) for n in range(4)]
    client.finish()
    assert [record.token_ids for record in records] == [client.expected(r) for r in records]


def test_equal_prompts_that_arrive_together_wait_for_the_checkpoint() -> None:
    runner = NullRunner(groups=[full(), state()])
    client = Client(runner)
    for name in "abc":
        client.submit(name, list(range(30)))
    client.finish()
    assert lengths(runner.plans) == [0, 28, 28]


# A shared arena.


def test_groups_share_their_memory_as_requests_need_it() -> None:
    def num_steps(groups: list) -> int:
        runner = NullRunner(num_slots=9, max_length=400, max_step_tokens=500, groups=groups)
        client = Client(runner)
        for number in range(9):
            client.submit(str(number), [number, *range(40)], 60)
        client.finish()
        client.check_idle()
        for record in client.records.values():
            client.check_record(record)
        return len(runner.plans)

    # One slab is as good for three pages of the first group as for four of the second.
    groups = [full(), window(8)]
    halves = [
        PageGroup("full", 4, 1, 3 * 20),
        PageGroup("window", 4, 1, 4 * 20, 8),
    ]
    assert num_steps(shared(groups, 41)) < 0.8 * num_steps(halves)


def test_a_request_whose_pages_are_scattered_over_all_slabs_still_ends() -> None:
    groups = shared([full(), window(8), state()], 14)
    client = Client(NullRunner(num_slots=4, max_length=60, groups=groups))
    for number in range(12):
        client.submit(str(number), [number % 3, *range(20)], 20)
    client.finish()
    for record in client.records.values():
        client.check_record(record)
    client.check_idle()


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_a_request_as_long_as_the_cache_is_served_whatever_others_left_in_it(
    prefix_cache: bool,
) -> None:
    """Two groups, 6 slabs of 3 and of 4 pages: 9 tokens take them all, idle pages in none of them.

    All pairs of lengths that come before it, with a common prefix and without; with prompt logprobs
    from the start nothing of the cache is of use to it.
    """
    for first, second, scored_from in itertools.product(range(1, 10), range(1, 10), [None, 0]):
        groups = shared([full(1, 13), full(1, 13)], 7)
        client = Client(NullRunner(num_slots=3, groups=groups), prefix_cache=prefix_cache)
        assert client.engine.scheduler.cache.max_tokens == 9
        client.submit("first", list(range(3, 3 + first)), 1)
        client.submit("second", [3, *range(20, 19 + second)], 25)
        client.step(second)
        client.submit("whole", list(range(3, 12)), 0, prompt_logprobs_from=scored_from)
        client.finish()
        for record in client.records.values():
            client.check_record(record)
            assert record.ended is not None
            assert record.ended.reason.kind != "error"
        client.check_idle()
