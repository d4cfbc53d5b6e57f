"""The loop between mailbox and engine: sleeping, stopping, crashing."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from client import Client
from null_runner import NullRunner

from headstock.engine import EngineLoop
from headstock.requests import SamplingParams, TokenIds
from headstock.wire.messages import (
    AskState,
    Crashed,
    Ended,
    FromEngine,
    Pause,
    State,
    Submit,
    ToEngine,
)
from headstock.wire.transport import MemoryMailbox


class Script:
    """A mailbox that plays batches of messages, and stops the loop after the last one's work."""

    def __init__(self, *batches: list[ToEngine]) -> None:
        self.batches = list(batches)
        self.timeouts: list[float | None] = []
        self.sent: list[FromEngine] = []
        self.now_s = 0.0
        self.loop: EngineLoop | None = None
        self.num_received = 0

    def clock(self) -> float:
        return self.now_s

    def receive(self, timeout_s: float | None) -> list[ToEngine]:
        self.timeouts.append(timeout_s)
        if self.batches:
            batch = self.batches.pop(0)
            self.num_received += len(batch)
            return batch
        self.now_s += timeout_s or 0.0
        if timeout_s and self.loop is not None:
            self.loop.stop()
        return []

    def send(self, messages: Sequence[FromEngine]) -> None:
        self.sent += messages

    def close(self) -> None:
        pass

    def run(self, runner: NullRunner) -> None:
        self.loop = EngineLoop(Client(runner).engine, self, clock=self.clock)
        self.loop.run()


def submit(name: str) -> Submit:
    params = SamplingParams(max_new_tokens=3, temperature=0, sampling_seed=0)
    return Submit(id=name, prompt_ids=TokenIds([1, 2, 3]), params=params)


def ended(script: Script) -> list[str]:
    return [message.id for message in script.sent if isinstance(message, Ended)]


def test_requests_are_served_until_the_loop_is_stopped() -> None:
    script = Script([submit("a"), submit("b")], [submit("c")])
    script.run(NullRunner())
    assert sorted(ended(script)) == ["a", "b", "c"]


def test_with_work_the_mailbox_is_only_looked_into() -> None:
    script = Script([submit("a")])
    script.run(NullRunner())
    assert script.timeouts[1] == 0.0


def test_without_work_the_loop_sleeps_until_the_next_state_is_due() -> None:
    script = Script([], [])
    script.run(NullRunner())
    assert script.timeouts[-1] == 1.0


def test_the_state_is_sent_once_a_second() -> None:
    script = Script(*[[submit(str(number))] for number in range(30)])
    script.run(NullRunner())
    assert len([m for m in script.sent if isinstance(m, State)]) == 2
    assert script.now_s == 1.0


def test_idleness_is_told_once_and_only_after_work() -> None:
    told: list[float] = []
    work: list[ToEngine] = [submit("a")]
    cases: list[tuple[list[list[ToEngine]], list[float]]] = [([[]], []), ([work, [], []], [1.0])]
    for batches, expected in cases:
        script = Script(*batches)
        script.loop = EngineLoop(Client(NullRunner()).engine, script, clock=script.clock)
        script.loop.when_idle(lambda script=script: told.append(script.now_s))
        script.loop.run()
        script.batches = [[], []]
        script.now_s += 1.0
        assert told == expected


def test_a_paused_loop_is_idle_again_once_it_has_taken_requests_in() -> None:
    told: list[float] = []
    script = Script([Pause(call=1, mode="in_place")], [submit("a")], [], [])
    script.loop = EngineLoop(Client(NullRunner()).engine, script, clock=script.clock)
    script.loop.when_idle(lambda: told.append(script.now_s))
    script.loop.run()
    assert told == [0.0, 1.0]
    assert ended(script) == []


def test_an_idle_loop_uses_no_processor_time() -> None:
    mailbox = MemoryMailbox()
    loop = EngineLoop(Client().engine, mailbox)
    thread = threading.Thread(target=loop.run)
    thread.start()
    time.sleep(0.1)
    before_s = time.process_time()
    time.sleep(0.5)
    used_s = time.process_time() - before_s
    loop.stop()
    mailbox.put(AskState(call=1))
    thread.join(5)
    assert not thread.is_alive()
    assert used_s < 0.1


def test_a_failed_step_is_not_the_end_of_the_loop() -> None:
    script = Script([submit("a")], [], [], [], [submit("b")])
    script.run(NullRunner(explode={2: "result"}))
    assert ended(script) == ["a", "b"]
    assert not [m for m in script.sent if isinstance(m, Crashed)]


def test_a_runner_that_always_fails_ends_the_loop_with_a_reason() -> None:
    script = Script(*[[submit(name)] for name in "abcde"])
    explode = dict.fromkeys(range(1, 20), "launch")
    with pytest.raises(RuntimeError, match="exploded"):
        script.run(NullRunner(explode=explode))
    assert ended(script) == ["a", "b", "c"]
    crashed = script.sent[-1]
    assert isinstance(crashed, Crashed)
    assert "exploded" in crashed.problem
    assert not crashed.is_config


def test_an_error_of_our_own_ends_the_loop_with_a_reason() -> None:
    script = Script([submit("a")])
    client = Client()
    client.engine.scheduler.tokens.limit = 0
    with pytest.raises(AssertionError):
        EngineLoop(client.engine, script, clock=script.clock).run()
    assert isinstance(script.sent[-1], Crashed)


def test_the_heartbeat_tells_how_many_messages_came() -> None:
    script = Script([submit("a"), submit("b")])
    script.run(NullRunner())
    states = [message for message in script.sent if isinstance(message, State)]
    assert states[-1].received == 2
