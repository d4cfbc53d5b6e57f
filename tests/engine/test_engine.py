"""The engine on the null runner: order of launch and read, ends, failures."""

from __future__ import annotations

import msgspec
import pytest
from client import Client
from null_runner import NullRunner

from headstock.engine import RunnerError
from headstock.wire.messages import AskState, Flushed, Pause, PauseMode, Resume, State
from headstock.wire.steps import FROM_DEVICE, StepPlan


def test_a_step_is_launched_before_the_tokens_of_the_last_are_read() -> None:
    client = Client(NullRunner(depth=2))
    client.submit("a", [1, 2, 3], 6)
    client.finish()
    events = client.runner.events
    for step in range(1, 6):
        assert events.index(("launch", step + 1)) < events.index(("result", step))


def test_a_runner_of_depth_one_has_one_step_at_a_time() -> None:
    client = Client(NullRunner(depth=1))
    client.submit("a", [1, 2, 3], 6)
    client.finish()
    steps = range(1, 7)
    assert client.runner.events == [(kind, n) for n in steps for kind in ("launch", "result")]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_does_not_change_the_tokens(depth: int) -> None:
    client = Client(NullRunner(depth=depth))
    record = client.submit("a", [1, 2, 3], 9, stop_ids=[5, 6])
    client.finish()
    assert record.token_ids == client.expected(record)


def test_a_cache_hit_draws_the_same_tokens() -> None:
    client = Client()
    prompt = list(range(20))
    first = client.submit("a", prompt)
    client.finish()
    second = client.submit("b", prompt)
    client.finish()
    assert second.ended is not None
    assert second.ended.cached_tokens == 16
    assert first.token_ids == second.token_ids


def test_a_retraction_draws_the_same_tokens() -> None:
    client = Client(NullRunner(num_pages=8))
    records = [client.submit(str(n), [n, 2, 3, 4, 5], 18) for n in range(3)]
    client.finish()
    assert client.engine.scheduler.counters.retractions > 0
    assert [record.token_ids for record in records] == [client.expected(r) for r in records]


def drafted_of(plan: StepPlan) -> dict[int, int]:
    """Return the rows of a plan that have drafts: slot to tokens."""
    rows = plan.rows
    columns = zip(rows.slots, rows.query_max, rows.source, strict=True)
    return {slot: query for slot, query, source in columns if source == FROM_DEVICE and query > 1}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("max_drafts", [1, 3, 7])
def test_drafts_change_no_token(depth: int, max_drafts: int) -> None:
    client = Client(NullRunner(depth=depth, max_drafts=max_drafts))
    records = [
        client.submit(str(number), [number, 2, 3], 20, stop_ids=[5, 6], logprobs=number % 2 - 1)
        for number in range(4)
    ]
    client.finish()
    for record in records[1::2]:
        client.check_record(record)
        chosen = [value for logprobs in record.logprobs for value in logprobs.chosen]
        assert chosen == [float(token) for token in record.token_ids]
    for record in records:
        client.check_record(record)
    by_slot = [drafted_of(plan) for plan in client.runner.plans]
    drafted = {slot for widths in by_slot for slot in widths}
    assert drafted & {0, 2}, "something is drafted"
    assert drafted & {1, 3}, "those with logprobs draft as well"
    client.check_idle()


def test_drafts_save_steps() -> None:
    steps = []
    for max_drafts in (0, 3):
        client = Client(NullRunner(max_drafts=max_drafts))
        client.submit("a", [1, 2, 3], 30)
        client.finish()
        steps.append(len(client.runner.plans))
    assert steps[1] < 0.8 * steps[0]


def test_a_steady_step_keeps_its_drafts() -> None:
    client = Client(NullRunner(max_drafts=3))
    client.submit("a", [1, 2, 3], 40)
    client.submit("b", [1, 2, 4], 40)
    client.finish()
    wide = [plan for plan in client.runner.plans if plan.rows.query_max == [4, 4]]
    assert sum(plan.steady for plan in wide) > 3
    assert {tuple(plan.rows.query_max) for plan in client.runner.plans if plan.steady} == {
        (4, 4),
        (1, 1),
    }


def test_drafts_end_where_the_context_ends() -> None:
    client = Client(NullRunner(max_drafts=3, max_length=21, num_pages=7))
    record = client.submit("a", [1, 2, 3], None)
    client.finish()
    assert len(record.token_ids) == 18
    assert max(plan.rows.kv_max[0] for plan in client.runner.plans) <= 21


def test_a_request_may_forgo_drafts() -> None:
    client = Client(NullRunner(max_drafts=3))
    client.submit("a", [1, 2, 3], 9, drafts=False)
    client.finish()
    assert {plan.rows.query_max[0] for plan in client.runner.plans[1:]} == {1}


def test_a_replay_goes_on_where_the_earlier_attempt_stopped() -> None:
    client = Client()
    whole = client.submit("a", [1, 2, 3], 8)
    client.finish()
    again = client.submit("a", [1, 2, 3], 8, attempt=1, output_ids=whole.token_ids[:5])
    client.finish()
    assert again.token_ids == whole.token_ids


def test_an_aborted_request_frees_its_pages_and_says_nothing_more() -> None:
    client = Client()
    client.submit("a", list(range(10)), 30)
    client.step(3)
    client.abort("a")
    client.finish()
    client.check_idle()


def test_a_fault_ends_its_request_alone() -> None:
    client = Client(NullRunner(poison=13))
    bad, good = client.submit("bad", [1, 13, 2]), client.submit("good", [1, 2, 3])
    client.finish()
    assert bad.ended is not None
    assert bad.ended.reason.code == "computation_failed"
    assert good.token_ids == client.expected(good)


@pytest.mark.parametrize("where", ["launch", "entered", "result"])
def test_a_step_that_fails_ends_its_requests_and_the_others_go_on(where: str) -> None:
    client = Client(NullRunner(num_slots=1, explode={2: where}))
    hit, waiting = client.submit("hit", [1, 2, 3]), client.submit("waiting", [4, 5, 6])
    client.finish()
    assert hit.ended is not None
    assert hit.ended.reason.kind == "error"
    assert "exploded" in hit.ended.reason.message
    assert waiting.token_ids == client.expected(waiting)
    client.check_idle()


def test_what_a_failed_step_wrote_is_never_read() -> None:
    client = Client(NullRunner(explode={1: "result"}))
    client.submit("a", list(range(12)))
    client.finish()
    again = client.submit("b", list(range(12)))
    client.finish()
    assert again.ended is not None
    assert again.ended.cached_tokens == 0
    assert again.token_ids == client.expected(again)


def test_an_error_of_our_own_is_not_taken_for_the_runners() -> None:
    client = Client(NullRunner())
    client.submit("a", [1, 2, 3])
    client.engine.scheduler.tokens.limit = 0
    with pytest.raises(AssertionError) as caught:
        client.step()
    assert not isinstance(caught.value, RunnerError)


def test_logprobs_come_with_the_tokens_of_who_asked() -> None:
    client = Client()
    asked = client.submit("asked", [1, 2, 3], 4, logprobs=0)
    other = client.submit("other", [4, 5, 6], 4)
    client.finish()
    chosen = [value for logprobs in asked.logprobs for value in logprobs.chosen]
    assert chosen == [float(token) for token in asked.token_ids]
    assert other.logprobs == []


@pytest.mark.parametrize(("start", "max_new_tokens"), [(0, 4), (7, 4), (0, 0)])
def test_prompt_logprobs_are_of_the_prompt_from_where_they_were_asked(
    start: int, max_new_tokens: int
) -> None:
    client = Client(NullRunner(max_step_tokens=5))
    prompt = [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21]
    client.submit("warm", prompt)
    client.finish()
    record = client.submit("a", prompt, max_new_tokens, prompt_logprobs_from=start)
    client.finish()
    chosen = [value for logprobs in record.logprobs for value in logprobs.chosen]
    assert chosen == [float(token) for token in prompt[max(1, start) :]]
    assert all(logprobs.is_prompt for logprobs in record.logprobs)


def test_flushing_frees_all_pages_of_an_idle_engine() -> None:
    client = Client()
    client.submit("a", list(range(10)))
    client.finish()
    client.flush()
    (flushed,) = client.others
    assert isinstance(flushed, Flushed)
    assert flushed.was_idle
    assert flushed.freed_pages > 0
    assert client.engine.state().free_pages == client.engine.state().total_pages


def test_the_state_counts_what_was_done() -> None:
    client = Client()
    for name in "ab":
        client.submit(name, list(range(10)), 4)
        client.finish()
    client.say(AskState(call=3))
    (state,) = client.others
    assert isinstance(state, State)
    assert state.call == 3
    assert state.totals["prompt_tokens"] == 20
    assert state.totals["cached_tokens"] == 8
    assert state.totals["generation_tokens"] == 8
    assert state.totals["requests_length"] == 2


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("mode", ["retract", "in_place"])
def test_a_pause_computes_nothing_and_changes_no_token(depth: int, mode: PauseMode) -> None:
    client = Client(NullRunner(depth=depth))
    records = [client.submit(str(n), [n, 2, 3, 4], 12) for n in range(3)]
    client.step(4)
    client.say(Pause(call=5, mode=mode))
    client.finish()
    assert not client.engine.has_work
    assert client.others[-1] == msgspec.structs.replace(client.others[-1], call=5, is_paused=True)
    before = [len(record.token_ids) for record in records]
    late = client.submit("late", [9, 9, 9], 5)
    num_events = len(client.runner.events)
    client.finish()
    assert len(client.runner.events) == num_events
    assert [len(record.token_ids) for record in records] == before
    retracted = client.engine.scheduler.counters.retractions
    assert retracted == (3 if mode == "retract" else 0)
    client.say(Resume(call=6))
    client.finish()
    for record in [*records, late]:
        assert record.token_ids == client.expected(record)


def test_a_pause_that_aborts_ends_all_and_keeps_who_comes_later() -> None:
    client = Client(NullRunner(depth=2))
    first = client.submit("first", [1, 2, 3], 12)
    client.step(2)
    client.say(Pause(call=5, mode="abort"))
    client.finish()
    assert first.ended is not None
    assert first.ended.reason.kind == "abort"
    late = client.submit("late", [4, 5], 3)
    client.abort("late")
    assert late.ended is not None, "who waits behind a pause can still be aborted"
    later = client.submit("later", [4, 5], 3)
    client.say(Resume(call=6))
    client.finish()
    assert later.token_ids == client.expected(later)


def test_the_engine_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, headstock.engine; print('torch' in sys.modules)"
    output = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert output.strip() == "False"
