"""Requests with grammars on the null runner: what they draw, who waits for whom, how they end."""

from __future__ import annotations

import pytest
from client import Client, Record
from null_runner import NullRunner
from toy_grammar import EOS

from headstock.engine import Engine
from headstock.requests import Grammar, SamplingParams, TokenIds
from headstock.scheduler import Scheduler
from headstock.structured.provider import ProviderError
from headstock.wire.messages import AbortAll, Submit
from headstock.wire.steps import Masks


def masked(client: Client, name: str, text: str = "3,2,6", outputs: int = 12, **more) -> Record:
    return client.submit(name, [1, 2, 3], outputs, grammar=Grammar("regex", text, "regex"), **more)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_masked_request_obeys_its_grammar_and_its_neighbours_do_not_change(depth: int) -> None:
    alone = Client(NullRunner(depth=depth))
    before = [alone.submit(str(n), [n, 2, 3], 12, stop_ids=[EOS, 7]) for n in range(3)]
    alone.finish()
    client = Client(NullRunner(depth=depth))
    bound = masked(client, "bound", stop_ids=[EOS])
    after = [client.submit(str(n), [n, 2, 3], 12, stop_ids=[EOS, 7]) for n in range(3)]
    client.finish()
    assert [record.token_ids for record in after] == [record.token_ids for record in before]
    assert bound.token_ids == client.expected(bound)
    drawn = [token for token in bound.token_ids if token != EOS]
    assert [token % 3 for token in drawn] == [i % 3 for i in range(len(drawn))]
    assert 2 <= len(drawn) <= 6
    client.check_idle()


def test_a_masked_step_is_launched_before_the_last_tokens_are_read_and_drawn_from_after() -> None:
    client = Client(NullRunner(depth=2), is_quick=True)
    masked(client, "a", "1,6,6", 6)
    client.finish()
    events = client.runner.events
    for step in range(1, 6):
        assert events.index(("launch", step + 1)) < events.index(("result", step))
        assert events.index(("result", step)) < events.index(("sample", step + 1))
    assert events.index(("sample", 2)) < events.index(("launch", 3))


def test_steps_without_masked_rows_know_nothing_of_masks() -> None:
    client = Client(NullRunner(depth=2))
    client.submit("a", [1, 2, 3], 6)
    client.finish()
    assert client.compiler.num_masks == 0
    assert {kind for kind, _ in client.runner.events} == {"launch", "result"}


def test_a_masked_step_may_be_steady() -> None:
    client = Client(is_quick=True)
    record = masked(client, "a", "2,20,20", 20)
    client.finish()
    plans = client.runner.plans
    assert sum(plan.steady for plan in plans) > 10
    assert all(plan.masked == [0] for plan in plans)
    assert record.token_ids == client.expected(record)


def test_a_prompt_in_chunks_is_masked_where_it_draws() -> None:
    client = Client(NullRunner(max_step_tokens=4), is_quick=True)
    grammar = Grammar("regex", "2,1,3", "regex")
    record = client.submit("a", list(range(1, 11)), 8, grammar=grammar)
    client.finish()
    assert [plan.masked for plan in client.runner.plans[:3]] == [[], [], [0]]
    assert record.token_ids == client.expected(record)


def test_a_complete_output_ends_without_a_stop_id() -> None:
    client = Client()
    record = masked(client, "a", "2,3,3", 12)
    client.finish()
    assert len(record.token_ids) == 3
    assert record.ended is not None
    assert (record.ended.reason.kind, record.ended.reason.matched) == ("stop", None)
    client.check_idle()


def test_an_output_may_end_where_its_grammar_allows_it() -> None:
    client = Client()
    record = masked(client, "a", "1,2,40", 40, stop_ids=[EOS, 5, 6, 8, 9])
    client.finish()
    assert record.ended is not None
    assert record.ended.reason.matched == record.token_ids[-1]
    assert len(record.token_ids) > 2
    assert not set(record.token_ids[:-1]) & {EOS, 5, 6, 8, 9}


def test_a_request_waits_for_its_grammar_and_the_others_do_not() -> None:
    client = Client()
    bound, free = masked(client, "bound"), client.submit("free", [4, 5, 6], 4)
    for _ in range(12):
        client.hear(client.engine.step())
        client.hear(client.engine.take_prepared())
        if not client.engine.has_work:
            break
    assert free.ended is not None
    assert not bound.token_ids
    assert client.engine.is_preparing
    assert client.engine.state().waiting == 1
    client.finish()
    assert bound.token_ids == client.expected(bound)


def test_a_refused_grammar_ends_its_request_and_names_the_field() -> None:
    client = Client()
    bad, good = masked(client, "bad", "bad"), client.submit("good", [1, 2, 3])
    client.finish()
    assert bad.ended is not None
    reason = bad.ended.reason
    assert (reason.kind, reason.code, reason.field) == ("error", "invalid_grammar", "regex")
    assert "It is bad." in reason.message
    assert good.token_ids == client.expected(good)
    client.check_idle()


@pytest.mark.parametrize("is_all", [False, True])
def test_a_request_is_aborted_while_its_grammar_is_compiled(is_all: bool) -> None:
    client = Client()
    record = masked(client, "a")
    if is_all:
        client.say(AbortAll())
    else:
        client.abort("a")
    assert record.ended is not None
    assert record.ended.reason.kind == "abort"
    client.finish()
    client.check_idle()


def test_a_later_attempt_takes_the_place_of_one_that_waits() -> None:
    client = Client()
    first, second = masked(client, "a"), masked(client, "a", attempt=1)
    client.finish()
    assert first.ended is not None
    assert first.ended.reason.kind == "abort"
    assert second.token_ids == client.expected(second)


def test_a_replay_goes_on_in_the_middle_of_its_grammar() -> None:
    client = Client()
    whole = masked(client, "a", "3,8,8")
    client.finish()
    for known in (3, 8):
        again = masked(client, "a", "3,8,8", attempt=known, output_ids=whole.token_ids[:known])
        client.finish()
        assert again.token_ids == whole.token_ids


def test_a_retracted_request_goes_on_in_the_middle_of_its_grammar() -> None:
    client = Client(NullRunner(num_pages=8))
    records = [
        client.submit(str(n), [n, 2, 3, 4, 5], 18, grammar=Grammar("regex", "2,18,18", "regex"))
        for n in range(3)
    ]
    client.finish()
    assert client.engine.scheduler.counters.retractions > 0
    assert [record.token_ids for record in records] == [client.expected(r) for r in records]


@pytest.mark.parametrize("where", ["launch", "entered", "sample", "result"])
def test_a_masked_step_that_fails_ends_its_requests_and_the_others_go_on(where: str) -> None:
    client = Client(NullRunner(num_slots=1, explode={2: where}), is_quick=True)
    hit, waiting = masked(client, "hit"), masked(client, "waiting", "2,4,4")
    client.finish()
    assert hit.ended is not None
    assert hit.ended.reason.kind == "error"
    assert waiting.token_ids == client.expected(waiting)
    client.check_idle()


def test_what_is_drawn_against_the_mask_ends_the_request() -> None:
    class Deaf(NullRunner):
        def sample(self, handle, masks) -> None:
            anything = [b"\xff" * len(words) for words in masks.words]
            super().sample(handle, Masks(masks.slots, anything))

    client = Client(Deaf())
    record = masked(client, "a", "5,9,9")
    client.finish()
    assert record.ended is not None
    assert record.ended.reason.code == "computation_failed"
    assert record.ended.reason.field == "regex"
    client.check_idle()


def test_a_provider_that_fails_ends_its_requests_alone() -> None:
    client = Client()
    bound, free = masked(client, "bound"), client.submit("free", [4, 5, 6], 4)
    client.step(2)

    def masks(_matchers):
        raise ProviderError("it broke")

    client.compiler.masks = masks
    client.finish()
    assert bound.ended is not None
    assert bound.ended.reason.code == "computation_failed"
    assert "it broke" in bound.ended.reason.message
    assert free.token_ids == client.expected(free)
    client.check_idle()


def test_matchers_are_dropped_with_their_requests() -> None:
    client = Client()
    for number in range(5):
        masked(client, str(number))
    client.step(4)
    client.abort("3")
    client.finish()
    assert not client.engine._grammars._followed


def test_an_engine_without_a_compiler_says_why() -> None:
    runner = NullRunner()
    engine = Engine(runner, Scheduler(runner.limits))
    submit = Submit(
        id="a",
        prompt_ids=TokenIds([1]),
        params=SamplingParams(),
        grammar=Grammar("json_object", "", "response_format"),
    )
    (ended,) = engine.receive([submit])
    assert ended.reason.code == "not_supported"
    assert ended.reason.field == "response_format"
