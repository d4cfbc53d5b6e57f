"""The n-th step, allocation or send fails, for every n; events come in every order; time jumps.

Each trial runs a small load again and looks at what must hold whatever failed: every request ends
once, what it drew is what it draws alone, no page is lost, and requests that were not touched by
the failure end whole.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from client import Client, Record
from null_runner import NullRunner, full, shared, state, window

from headstock.cache.groups import Group
from headstock.engine import EngineLoop
from headstock.requests import Grammar, SamplingParams, TokenIds
from headstock.wire.messages import Crashed, Ended, FromEngine, Submit, ToEngine, Tokens

pytestmark = pytest.mark.chaos
MODELS: dict[str, Callable[[], list]] = {
    "full": lambda: [full(4, 16)],
    "window": lambda: [full(4, 16), window(8, 4, 12)],
    "state": lambda: [full(4, 16), state(6)],
    "arena": lambda: shared([full(4, 16), window(8, 4, 16)], 9),
}


def make_client(model: str, *, depth: int = 2, clock: Callable[[], float] | None = None) -> Client:
    runner = NullRunner(num_slots=3, max_step_tokens=8, depth=depth, groups=MODELS[model]())
    client = Client(runner, is_quick=True)
    if clock is not None:
        client.engine._clock = clock
    return client


def submit_all(client: Client) -> list[Record]:
    """Ask for a little of everything: shared prefixes, chunks, a grammar, one that waits."""
    stem = list(range(3, 12))
    return [
        client.submit("a", [*stem, 1], 9),
        client.submit("b", [*stem, 2], 14, temperature=1.0, seed=3),
        client.submit("masked", [5, 6], 6, grammar=Grammar("regex", "3,2,9", "regex")),
        client.submit("waits", [7] * 13, 5, stop_ids=[5]),
        client.submit("last", [*stem, 1, 4], 7),
    ]


def check_all(client: Client, records: Sequence[Record]) -> None:
    client.check_idle()
    for record in records:
        client.check_record(record)
    client.flush()
    assert client.engine.state().free_pages == client.engine.state().total_pages


def is_whole(record: Record) -> bool:
    assert record.ended is not None
    return record.ended.reason.kind in ("stop", "length")


@pytest.mark.parametrize("where", ["launch", "entered", "sample", "result"])
@pytest.mark.parametrize(("model", "depth"), [("full", 1), *((model, 2) for model in MODELS)])
def test_whichever_step_fails_its_requests_end_and_all_others_are_whole(
    model: str, where: str, depth: int
) -> None:
    failed = 0
    for number in itertools.count(1):
        client = make_client(model, depth=depth)
        client.runner.explode = {number: where}
        records = submit_all(client)
        client.finish()
        check_all(client, records)
        was_hit = any(record.saw_explosion for record in records)
        failed += was_hit
        for record in records:
            if not is_whole(record):
                assert record.saw_explosion
                assert record.ended is not None
                assert "exploded" in record.ended.reason.message
        client.runner.explode = {}
        after = client.submit("after", [1, 2, 3, 4, 5], 6)
        client.finish()
        assert is_whole(after), f"the engine serves nothing after step {number} failed"
        check_all(client, [after])
        if number >= (client.runner.plans or [None])[-1].step - 1:
            break
    assert failed > 3


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_whichever_allocation_fails_every_request_ends_whole(
    model: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages that others hold may be missing at any time; then somebody waits or is retracted."""
    real = Group.take
    trial = Trial()

    def take(group: Group, count: int) -> list[int] | None:
        if trial.client is not None and trial.client.engine.scheduler.num_running >= 2:
            trial.calls += 1
            if trial.calls == trial.fail_at:
                return None
        return real(group, count)

    monkeypatch.setattr(Group, "take", take)
    while trial.calls >= trial.fail_at:
        trial = Trial(make_client(model, depth=depth), trial.fail_at + 1)
        assert trial.client is not None
        records = submit_all(trial.client)
        trial.client.finish()
        assert all(map(is_whole, records)), [record.ended for record in records]
        check_all(trial.client, records)
    assert trial.fail_at > 5


@dataclass
class Trial:
    """Which allocation fails, and how many there were."""

    client: Client | None = None
    fail_at: int = 0
    calls: int = 0


class LosingMailbox:
    """A mailbox whose n-th send fails."""

    def __init__(self, messages: list[ToEngine], fail_at: int) -> None:
        self._messages = messages
        self._left = fail_at
        self.sent: list[FromEngine] = []
        self.num_received = 0
        self.loop: EngineLoop | None = None

    def receive(self, timeout_s: float | None) -> list[ToEngine]:
        messages, self._messages = self._messages, []
        self.num_received += len(messages)
        if not messages and timeout_s and self.loop is not None:
            self.loop.stop()
        return messages

    def send(self, messages: Sequence[FromEngine]) -> None:
        self._left -= 1
        if self._left == 0:
            raise OSError(105, "No buffer space available")
        self.sent += messages

    def close(self) -> None:
        pass


def test_whichever_send_fails_the_next_engine_goes_on_where_the_last_was_heard() -> None:
    for fail_at in itertools.count(1):
        client = make_client("full")
        submits = [record.submit for record in submit_all(client) if not record.submit.is_masked]
        wanted = {s.id: client.expected(Record(s, [])) for s in submits}
        heard, ended, is_over = serve(submits, fail_at)
        if is_over:  # no send was left to fail
            assert heard == wanted
            break
        again = [
            Submit(
                id=s.id, attempt=1, prompt_ids=s.prompt_ids, output_ids=heard[s.id],
                params=s.params, stop_ids=s.stop_ids,
            )
            for s in submits
            if s.id not in ended
        ]  # fmt: skip
        more, _, is_over = serve(again, 10**9)
        assert is_over
        for request_id, ids in more.items():
            heard[request_id] += ids
        assert heard == wanted
    assert fail_at > 5


def serve(submits: list[Submit], fail_at: int) -> tuple[dict[str, list[int]], set[str], bool]:
    """Run an engine's loop; return what it told of each request, who ended, and if all was told."""
    runner = NullRunner(num_slots=3, max_step_tokens=8, groups=MODELS["full"]())
    mailbox = LosingMailbox(list(submits), fail_at)
    loop = EngineLoop(Client(runner).engine, mailbox, clock=itertools.count(0.0, 0.001).__next__)
    mailbox.loop = loop
    is_over = True
    try:
        loop.run()
    except OSError:
        is_over = False
        assert any(isinstance(message, Crashed) for message in mailbox.sent), "it says why"
    heard: dict[str, list[int]] = {submit.id: [] for submit in submits}
    ended = {message.id for message in mailbox.sent if isinstance(message, Ended)}
    for message in mailbox.sent:
        if isinstance(message, Tokens):
            ids = iter(message.token_ids)
            for request_id, count in zip(message.ids, message.counts, strict=True):
                heard[request_id] += itertools.islice(ids, count)
    return heard, ended, is_over


EVENTS: dict[str, Callable[[Client], object]] = {
    "a arrives": lambda client: client.submit("a", [3, 4, 5, 6, 7, 8], 12),
    "b arrives": lambda client: client.submit("b", [3, 4, 5, 6, 1], 5, stop_ids=[9]),
    "step": lambda client: client.step(),
    "a is aborted": lambda client: client.abort("a"),
    "b is cut": lambda client: client.cut("b", 1),
    "pages run out": lambda client: client.submit("large", [2] * 30, 20),
    "flush": lambda client: client.flush(),
}


def play(order: Sequence[str], depth: int) -> None:
    client = make_client("full", depth=depth)
    for event in order:
        EVENTS[event](client)
        client.engine.scheduler.check()
    client.finish()
    for record in client.records.values():
        client.check_record(record)
    check_all(client, list(client.records.values()))


@pytest.mark.parametrize("depth", [1, 2])
def test_events_may_come_in_any_order(depth: int) -> None:
    orders = list(itertools.permutations(EVENTS))
    for order in random.Random(depth).sample(orders, 60):
        play(order, depth)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("depth", [1, 2])
def test_events_may_come_in_each_of_all_orders(depth: int) -> None:
    for order in itertools.permutations(EVENTS):
        play(order, depth)


@pytest.mark.parametrize("jump_s", [3600.0, 10.0**9, 0.0])
def test_a_clock_that_jumps_or_stands_changes_no_token(jump_s: float) -> None:
    now_s = 0.0
    draws = random.Random(7)

    def clock() -> float:
        nonlocal now_s
        now_s += jump_s if draws.random() < 0.2 else 0.0
        return now_s

    client = make_client("full", clock=clock)
    records = submit_all(client)
    client.finish()
    assert all(map(is_whole, records))
    check_all(client, records)


def test_an_idle_loop_survives_a_jump_of_its_clock() -> None:
    params = SamplingParams(max_new_tokens=3, temperature=0, sampling_seed=0)
    mailbox = LosingMailbox([Submit(id="a", prompt_ids=TokenIds([1, 2]), params=params)], 10**9)
    steps = itertools.chain([0.0, 0.001, 0.002], itertools.count(10.0**9, 0.001))
    loop = EngineLoop(Client(NullRunner()).engine, mailbox, clock=steps.__next__)
    mailbox.loop = loop
    loop.run()
    assert [message.id for message in mailbox.sent if isinstance(message, Ended)] == ["a"]
