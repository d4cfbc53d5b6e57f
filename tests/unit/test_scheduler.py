"""The scheduler alone, step by step: what is planned, and how requests end."""

from __future__ import annotations

from headstock.wire.messages import Cut
from headstock.wire.steps import (
    FROM_DEVICE,
    FROM_HOST,
    Fault,
    StepPlan,
)
from tests.unit.scheduler_table import Table, limits_of, prompt

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
