"""The scheduler alone, step by step: what is planned, who waits, who gives way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import msgspec
import pytest

from headstock.requests import SamplingParams, TokenIds
from headstock.scheduler import Drawn, Scheduler
from headstock.wire.messages import Cut, Ended, Submit
from headstock.wire.steps import (
    FROM_DEVICE,
    FROM_HOST,
    Fault,
    PageGroup,
    RunnerLimits,
    StepPlan,
    StepResult,
)

PAGE = 4


def limits_of(
    *,
    slots: int = 4,
    step_tokens: int = 64,
    length: int = 64,
    pages: int = 100,
    depth: int = 2,
    adapters: int = 0,
) -> RunnerLimits:
    group = PageGroup("full", PAGE, 1, pages + 1)
    limits = RunnerLimits(slots, step_tokens, length, 1000, depth, [group])
    return msgspec.structs.replace(limits, num_adapters=adapters)


@dataclass
class Table:
    """A scheduler at a desk: requests in, plans out, every row draws token 7."""

    limits: RunnerLimits = field(default_factory=limits_of)
    settings: dict[str, object] = field(default_factory=dict)
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.limits, **self.settings)
        self.pending: list[StepPlan] = []
        self.ended: list[Ended] = []

    def submit(self, name: str, prompt: list[int], count: int | None = 8, **fields: object) -> None:
        params = SamplingParams(max_new_tokens=count, temperature=0, sampling_seed=0)
        submit = Submit(id=name, prompt_ids=TokenIds(prompt), params=params, **fields)
        self.scheduler.submit(submit, self.now_s)
        self.ended += self.scheduler.take_ended()

    def plan(self) -> StepPlan | None:
        plan = self.scheduler.plan(self.now_s)
        if plan is not None:
            self.pending.append(plan)
        return plan

    def planned(self) -> StepPlan:
        plan = self.plan()
        assert plan is not None
        return plan

    def settle(
        self, *, token: int = 7, done: bool = False, faults: list[Fault] | None = None
    ) -> Drawn:
        plan = self.pending.pop(0)
        rows = zip(plan.rows.slots, plan.rows.yields, strict=True)
        slots = [slot for slot, is_drawn in rows if is_drawn]
        count = len(slots)
        drafts = self.drafts_for(slots)
        ids, ends = [token] * count, [int(done)] * count
        result = StepResult(
            plan.step, slots, [1] * count, ids, ends, [], faults or [], drafts=drafts
        )
        self.now_s += 1.0
        drawn = self.scheduler.settle(result, self.now_s)
        self.ended += self.scheduler.take_ended()
        self.scheduler.check()
        return drawn

    def drafts_for(self, slots: list[int]) -> list[int]:
        """Return as many drafts as there may be for each of ``slots``."""
        max_drafts = self.scheduler.limits.max_drafts
        return [max_drafts] * len(slots) if max_drafts else []

    def settle_with(self, draw: Callable[[str, int], int]) -> list[tuple[str, int]]:
        """Settle a step in which ``draw`` says what a request draws at an output index."""
        plan = self.pending.pop(0)
        running = {request.slot: request for request in self.scheduler._running}
        rows = zip(plan.rows.slots, plan.rows.yields, strict=True)
        slots = [slot for slot, is_drawn in rows if is_drawn]
        tokens = [draw(running[slot].id, len(running[slot].outputs)) for slot in slots]
        named = [(running[slot].id, token) for slot, token in zip(slots, tokens, strict=True)]
        count = len(slots)
        result = StepResult(plan.step, slots, [1] * count, tokens, [0] * count, [], [])
        self.scheduler.settle(result, self.now_s)
        self.ended += self.scheduler.take_ended()
        self.scheduler.check()
        return named

    def step(self) -> StepPlan:
        plan = self.planned()
        self.settle()
        return plan

    def end_of(self, name: str) -> Ended:
        (ended,) = [ended for ended in self.ended if ended.id == name]
        return ended


def prompt(count: int, first: int = 0) -> list[int]:
    return list(range(first, first + count))


# Chunks and budgets.


def test_a_long_prompt_is_computed_in_chunks() -> None:
    table = Table(limits_of(step_tokens=8))
    table.submit("a", prompt(20))
    chunks = [table.planned().rows for _ in range(3)]
    assert [rows.query_max for rows in chunks] == [[8], [8], [4]]
    assert [rows.kv_max for rows in chunks] == [[8], [16], [20]]
    assert [rows.yields for rows in chunks] == [[0], [0], [1]]


def test_rows_that_decode_go_before_a_long_prompt() -> None:
    table = Table(limits_of(step_tokens=8))
    table.submit("a", prompt(4))
    table.step()
    table.submit("b", prompt(30, 100))
    plan = table.planned()
    assert plan.rows.query_max == [1, 7]
    assert plan.rows.source == [FROM_DEVICE, FROM_HOST]


def test_no_more_requests_run_than_a_step_has_tokens_for() -> None:
    table = Table(limits_of(slots=4, step_tokens=2))
    for name in "abc":
        table.submit(name, prompt(1, ord(name)))
    table.step()
    assert (table.scheduler.num_running, table.scheduler.num_waiting) == (2, 1)


def test_a_decoding_row_never_waits_for_a_prompt() -> None:
    table = Table(limits_of(slots=2, step_tokens=2))
    table.submit("a", prompt(2), 30)
    table.step()
    table.submit("b", prompt(12, 50), 4)
    for _ in range(12):
        plan = table.step()
        assert (0, 1) in zip(plan.rows.slots, plan.rows.query_max, strict=True)


def test_nothing_to_do_is_no_plan() -> None:
    assert Table().plan() is None


# Overlap.


def test_a_step_is_planned_before_the_last_one_has_settled() -> None:
    table = Table()
    table.submit("a", prompt(5))
    table.planned()
    second = table.planned()
    assert second.rows.source == [FROM_DEVICE]
    assert second.rows.kv_max == [6]
    assert second.host_ids == []


def test_a_row_with_all_its_outputs_on_the_way_is_not_planned_again() -> None:
    table = Table()
    table.submit("a", prompt(5), 2)
    table.planned()
    table.planned()
    assert table.plan() is None


def test_a_steady_step_says_the_same_lists_again() -> None:
    table = Table()
    table.submit("a", prompt(5))
    table.submit("b", prompt(5, 50))
    table.step()
    table.step()
    before, after = table.planned(), table.planned()
    assert after.steady
    assert after.rows.slots is before.rows.slots
    assert after.rows.query_max is before.rows.query_max
    assert after.rows.source is before.rows.source
    assert after.rows.kv_max == [length + 1 for length in before.rows.kv_max]


def test_pages_are_appended_only_where_a_page_is_full() -> None:
    table = Table()
    table.submit("a", prompt(6))
    appended = [len(table.step().append.pages) for _ in range(8)]
    assert appended == [2, 0, 0, 1, 0, 0, 0, 1]


def test_late_tokens_of_an_ended_row_are_dropped() -> None:
    table = Table()
    table.submit("a", prompt(5))
    table.planned()
    table.planned()
    table.settle(done=True)
    assert table.settle().requests == []
    assert table.end_of("a").num_outputs == 1


def test_a_page_is_not_reused_while_a_step_in_flight_has_it() -> None:
    table = Table(limits_of(pages=3, slots=2))
    table.submit("a", prompt(9))
    table.planned()
    table.planned()
    table.scheduler.abort("a")
    table.submit("b", prompt(9, 50))
    assert table.plan() is None
    table.settle()
    assert table.plan() is None
    table.settle()
    assert table.planned().leave == [0]


# Drafts.


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


# Prefixes.


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


# Too much at once.


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


# Adapters.


def test_rows_name_the_place_of_their_adapter() -> None:
    table = Table(limits_of(adapters=2))
    for name, adapter in (("a", "x"), ("b", ""), ("c", "y"), ("d", "x")):
        table.submit(name, prompt(5, ord(name)), adapter=adapter)
    plan = table.planned()
    assert [admit.adapter for admit in plan.admit] == [1, 0, 2, 1]
    assert plan.adapters == [(1, "x"), (2, "y")]


def test_an_adapter_keeps_its_place_until_another_needs_it() -> None:
    table, placed = Table(limits_of(adapters=2)), []
    for name, adapter in (("a", "x"), ("b", "y"), ("c", "x"), ("d", "z"), ("e", "x")):
        table.submit(name, prompt(5, ord(name)), 1, adapter=adapter)
        placed.append(table.step().adapters)
    # The least recently used, y, gave way to z.
    assert placed == [[(1, "x")], [(2, "y")], [], [(2, "z")], []]


def test_adapters_are_placed_anew_after_a_step_that_failed() -> None:
    table = Table(limits_of(adapters=2))
    table.submit("a", prompt(5), adapter="x")
    assert table.planned().adapters == [(1, "x")]
    table.pending.clear()
    table.scheduler.fail_all("broken")
    for name, adapter in (("b", "x"), ("c", "y")):
        table.submit(name, prompt(5), adapter=adapter)
    assert sorted(name for _, name in table.planned().adapters) == ["x", "y"]


def test_an_adapter_that_is_forgotten_before_its_plan_is_not_placed() -> None:
    table = Table(limits_of(adapters=1))
    places = table.scheduler.adapters
    request = SimpleNamespace(adapter="x", adapter_place=0)
    places.spend(request, 1)
    places.refund(request)
    assert places.forget("x")
    assert not places.has_placed


def test_a_request_waits_for_its_adapters_place_and_may_be_overtaken() -> None:
    table = Table(limits_of(adapters=1))
    table.submit("a", prompt(5, 0), 4, adapter="x")
    table.submit("b", prompt(5, 50), 4, adapter="y")
    table.submit("c", prompt(5, 100), 4)
    assert [admit.adapter for admit in table.planned().admit] == [1, 0]
    table.settle()
    while not table.ended:
        table.step()
    assert table.planned().admit[0].adapter == 1


def test_who_waits_for_an_adapters_place_is_not_overtaken_for_ever() -> None:
    table = Table(limits_of(adapters=1, slots=2))
    table.submit("x0", prompt(3), 2, adapter="x")
    table.submit("y", prompt(3, 50), 1, adapter="y")
    for number in range(1, 200):
        table.submit(f"x{number}", prompt(3, number), 2, adapter="x")
        table.step()
    assert table.end_of("y").reason.kind == "length"


def test_adapters_share_no_prefixes() -> None:
    table = Table(limits_of(adapters=2))
    for name, adapter in (("a", "x"), ("b", "y"), ("c", "")):
        table.submit(name, prompt(9), adapter=adapter)
    assert table.planned().rows.query_max == [9, 9, 9]


def test_an_adapter_in_use_cannot_be_forgotten() -> None:
    table = Table(limits_of(adapters=1))
    table.submit("a", prompt(5), 1, adapter="x")
    table.planned()
    assert not table.scheduler.adapters.forget("x")
    table.settle(done=True)
    assert table.scheduler.adapters.forget("x")


def test_an_adapter_without_a_place_for_any_is_refused() -> None:
    table = Table()
    table.submit("a", prompt(5), adapter="x")
    assert "adapter 'x'" in table.end_of("a").reason.message


# Policies.


def test_larger_priority_goes_first() -> None:
    table = Table(limits_of(slots=1), {"policy": "priority"})
    table.submit("a", prompt(5, 0), priority=0)
    table.submit("b", prompt(6, 50), priority=2)
    assert table.planned().rows.kv_max == [6]


def test_the_longest_cached_prefix_goes_first() -> None:
    table = Table(limits_of(slots=1), {"policy": "lpm"})
    table.submit("warm", prompt(12), 1)
    table.step()
    table.submit("a", prompt(9, 100))
    table.submit("b", prompt(13))
    assert table.planned().rows.kv_max == [13]


def test_longest_prefix_starves_no_request() -> None:
    table = Table(limits_of(slots=1), {"policy": "lpm"})
    table.submit("warm", prompt(12), 1)
    table.step()
    table.submit("cold", prompt(9, 100), 1)
    for number in range(200):
        table.submit(f"hot{number}", prompt(13), 1)
        table.step()
    assert table.end_of("cold").reason.kind == "length"


# Ends.


def test_a_stop_id_ends_a_request_and_is_named() -> None:
    table = Table()
    table.submit("a", prompt(5), stop_ids=[9])
    table.planned()
    table.settle(token=9, done=True)
    assert table.end_of("a").reason.kind == "stop"
    assert table.end_of("a").reason.matched == 9


def test_no_outputs_asked_means_none_published() -> None:
    table = Table()
    table.submit("a", prompt(5), 0)
    table.planned()
    assert table.settle(done=True).token_ids == []
    assert table.end_of("a").reason.kind == "length"
    assert table.end_of("a").num_outputs == 0


def test_a_cut_keeps_what_it_says() -> None:
    table = Table()
    table.submit("a", prompt(5))
    table.step()
    table.step()
    table.scheduler.cut(Cut(id="a", attempt=0, keep=1, matched="x"))
    (ended,) = table.scheduler.take_ended()
    assert (ended.reason.kind, ended.reason.matched, ended.num_outputs) == ("stop", "x", 1)


def test_a_cut_of_another_attempt_is_ignored() -> None:
    table = Table()
    table.submit("a", prompt(5), attempt=1)
    table.scheduler.cut(Cut(id="a", attempt=0, keep=1, matched="x"))
    assert table.scheduler.take_ended() == []


def test_aborting_twice_or_an_unknown_request_is_nothing() -> None:
    table = Table()
    table.submit("a", prompt(5))
    for name in ("a", "a", "nobody"):
        table.scheduler.abort(name)
    assert len(table.scheduler.take_ended()) == 1


def test_a_request_sent_again_replaces_its_earlier_attempt() -> None:
    table = Table()
    table.submit("a", prompt(5))
    table.submit("a", prompt(5), attempt=1, output_ids=[7, 7])
    assert [(ended.id, ended.attempt) for ended in table.ended] == [("a", 0)]
    plan = table.planned()
    assert plan.admit[0].num_outputs == 2
    assert plan.rows.query_max == [7]


def test_the_same_attempt_sent_twice_is_one_request() -> None:
    table = Table()
    table.submit("a", prompt(5))
    table.submit("a", prompt(5))
    assert table.scheduler.num_waiting == 1


def test_a_replay_that_was_complete_ends_without_a_step() -> None:
    table = Table()
    table.submit("a", prompt(5), 2, output_ids=[7, 7])
    assert table.end_of("a").reason.kind == "length"
    assert table.plan() is None


def test_a_fault_ends_its_request_alone_and_withdraws_its_pages() -> None:
    table = Table()
    table.submit("a", prompt(9))
    table.submit("b", prompt(9, 100))
    table.planned()
    table.settle(faults=[Fault(0, "not a number")])
    assert table.end_of("a").reason.message == "not a number"
    assert table.scheduler.num_running == 1
    table.submit("c", prompt(9))
    assert table.planned().admit[0].length == 0


def test_a_fault_of_an_aborted_request_withdraws_its_pages_too() -> None:
    table = Table()
    table.submit("a", prompt(9))
    table.planned()
    table.scheduler.abort("a")
    table.settle(faults=[Fault(0, "not a number")])
    table.submit("b", prompt(9))
    assert table.planned().admit[0].length == 0


def test_a_fault_in_a_cached_prefix_does_not_strike_twice() -> None:
    table = Table()
    table.submit("a", prompt(9), 1)
    table.step()
    table.submit("b", prompt(9))
    table.planned()
    table.settle(faults=[Fault(0, "not a number")])
    table.submit("c", prompt(9))
    assert table.planned().admit[0].length == 0


def test_a_failed_step_takes_only_what_had_not_settled_out_of_the_cache() -> None:
    table = Table()
    table.submit("settled", prompt(9), 1)
    table.step()
    table.submit("lost", prompt(9, 100), 1)
    table.planned()
    table.scheduler.abort("lost")
    table.scheduler.fail_all("the runner failed")
    table.pending.clear()
    table.submit("a", prompt(9))
    table.submit("b", prompt(9, 100))
    assert [admit.length for admit in table.planned().admit] == [8, 0]


def test_equal_events_give_equal_plans() -> None:
    def play() -> list[StepPlan]:
        table = Table(limits_of(pages=8))
        for number in range(6):
            table.submit(str(number), prompt(3 + 2 * number, number % 2), 9)
        plans = [table.step() for _ in range(10)]
        table.scheduler.abort("3")
        return plans + [table.step() for _ in range(10)]

    assert play() == play()
