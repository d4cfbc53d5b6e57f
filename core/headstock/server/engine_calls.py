"""What the API process knows of its engine, and its questions to it, each with one answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from headstock.errors import RequestError
from headstock.server.errors import BusyError
from headstock.wire.messages import (
    AskState,
    Crashed,
    FlushCache,
    Flushed,
    FromEngine,
    Loading,
    Pause,
    PauseMode,
    ReadWeight,
    Rested,
    Resume,
    Sleep,
    Started,
    StartProfile,
    State,
    StopProfile,
    ToEngine,
    UpkeepReply,
    Wake,
    WeightRows,
)

ASLEEP = "The server sleeps: its memory is given back."
HEARTBEAT_LIMIT_S = 5.0
"""An engine that said nothing for so long is not ready. Seconds."""


@dataclass(slots=True)
class EngineStatus:
    """The engine's phase and its last message.

    Attributes:
        phase: ``loading`` until its first word, and again while it restarts; ``down`` when it
            will not come back by itself; ``resting`` while the server sleeps without one.
        started: Its limits and facts, once ready.
        state: Its last counters.
        heard_at: When it last said anything; by the monotonic clock. Seconds.
        num_starts: How often it got ready.
        silence_limit_s: How long it may say nothing and still count as ready. Seconds.
    """

    phase: Literal["loading", "ready", "resting", "down"] = "loading"
    started: Started | None = None
    state: State | None = None
    loading: Loading | None = None
    crashed: Crashed | None = None
    heard_at: float = field(default_factory=time.monotonic)
    num_starts: int = 0
    silence_limit_s: float = HEARTBEAT_LIMIT_S

    def hear(self, message: FromEngine) -> None:
        """Take note of a message."""
        self.heard_at = time.monotonic()
        match message:
            case Started():
                self.phase = "ready"
                self.started = message
                self.crashed = None
                self.num_starts += 1
            case Loading():
                self.loading = message
            case State():
                self.state = message
            case Crashed():
                self.phase = "down" if message.is_config else "loading"
                self.crashed = message
                self.state = None
            case Rested():
                self.phase, self.crashed, self.state = "resting", None, None
            case _:
                pass

    @property
    def is_ready(self) -> bool:
        """Whether it is up, and was heard of lately."""
        silence_s = time.monotonic() - self.heard_at
        return self.phase == "ready" and silence_s < self.silence_limit_s

    @property
    def why_not(self) -> str:
        """In words, for callers that must wait."""
        if self.crashed is not None and self.phase == "down":
            return f"The engine is down: {self.crashed.problem}"
        if self.crashed is not None:
            return "The engine is restarting."
        if self.phase == "resting":
            return ASLEEP
        if self.phase == "loading":
            return "The model is loading."
        return "The engine does not answer."


Question = (
    FlushCache | AskState | Pause | Resume | StartProfile | StopProfile | Sleep | Wake | ReadWeight
)
Reply = Flushed | State | UpkeepReply | WeightRows


class EngineCalls:
    """Asks, and gives answers to who waits for them.

    Args:
        send: Sends to the engine.
    """

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        self._send = send
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._numbers = itertools.count(1)

    async def flush(self, timeout_s: float) -> Flushed:
        """Make the engine forget every cached prefix that no live request uses.

        Raises:
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        answer = await self._ask(FlushCache(call=call), call, timeout_s)
        assert isinstance(answer, Flushed), f"{answer} answers a flush"
        return answer

    async def ask_state(self, timeout_s: float) -> State:
        """Return the engine's counters as they are now.

        Raises:
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        answer = await self._ask(AskState(call=call), call, timeout_s)
        assert isinstance(answer, State), f"{answer} answers a question for the state"
        return answer

    async def pause(self, mode: PauseMode, timeout_s: float) -> State:
        """Stop the engine from computing steps.

        Raises:
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        answer = await self._ask(Pause(call=call, mode=mode), call, timeout_s)
        assert isinstance(answer, State), f"{answer} answers a pause"
        return answer

    async def resume(self, timeout_s: float) -> State:
        """Resume the steps after :meth:`pause`.

        Raises:
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        answer = await self._ask(Resume(call=call), call, timeout_s)
        assert isinstance(answer, State), f"{answer} answers a resumption"
        return answer

    async def start_profile(
        self, folder: str, num_steps: int, timeout_s: float, *, has_stacks: bool, has_shapes: bool
    ) -> UpkeepReply:
        """Have the next steps recorded; see :class:`headstock.wire.messages.StartProfile`.

        Raises:
            RequestError: One is being recorded, or nothing can be written there.
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        question = StartProfile(
            call=call,
            folder=folder,
            num_steps=num_steps,
            has_stacks=has_stacks,
            has_shapes=has_shapes,
        )
        return _done(await self._ask(question, call, timeout_s))

    async def stop_profile(self, timeout_s: float) -> UpkeepReply:
        """Have what was recorded written.

        Raises:
            RequestError: Nothing was, or it cannot be written.
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        return _done(await self._ask(StopProfile(call=call), call, timeout_s))

    async def sleep(self, timeout_s: float) -> UpkeepReply:
        """Have the engine give the memory of its pages back.

        Raises:
            RequestError: It cannot.
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        reply = await self._ask(Sleep(call=call), call, timeout_s)
        return _done(reply, code="sleep_refused")

    async def wake(self, timeout_s: float) -> UpkeepReply:
        """Have the engine make the pages again, and go on.

        Raises:
            RequestError: There is no room for them now.
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        reply = await self._ask(Wake(call=call), call, timeout_s)
        return _done(reply, code="wake_refused")

    async def read_weight(self, name: str, num_rows: int, timeout_s: float) -> WeightRows:
        """Return the first rows of a weight, as the engine has them.

        Raises:
            RequestError: It has none of that name, or cannot read it.
            BusyError: It did not answer in ``timeout_s``.
        """
        call = next(self._numbers)
        question = ReadWeight(call=call, name=name, num_rows=num_rows)
        reply = await self._ask(question, call, timeout_s)
        assert isinstance(reply, WeightRows), f"{reply} answers a question for a weight"
        if reply.problem:
            raise RequestError(
                reply.problem, remedy=reply.remedy, field="name", code="weight_unreadable"
            )
        return reply

    def answer(self, message: Reply) -> None:
        """Take an answer; a state without a question is ignored."""
        waiting = self._waiting.get(message.call)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)

    async def _ask(self, question: Question, call: int, timeout_s: float) -> Reply:
        answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[call] = answer
        self._send(question)
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError as error:
            raise BusyError(
                f"The engine did not answer in {timeout_s:g} s.",
                code="engine_unavailable",
                retry_after_s=2.0,
            ) from error
        finally:
            del self._waiting[call]


def _done(reply: Reply, *, code: str = "profile_refused") -> UpkeepReply:
    assert isinstance(reply, UpkeepReply), f"{reply} answers an order"
    if reply.problem:
        raise RequestError(reply.problem, remedy=reply.remedy, code=code)
    return reply
