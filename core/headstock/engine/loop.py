"""The engine process's loop, from its mailbox to its mailbox."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from headstock.engine.engine import Engine
from headstock.engine.guard import RunnerError, crash_report
from headstock.wire.messages import FromEngine

if TYPE_CHECKING:
    from headstock.wire.transport import Mailbox

log = logging.getLogger(__name__)

STATE_EVERY_S = 1.0
PREPARING_POLL_S = 0.002
"""How often an idle loop looks for compiled grammars and adapters that were read."""
MAX_FAILURES = 3
"""Runner failures with no step settled in between, after which the engine gives up."""


class EngineLoop:
    """Runs an engine on a mailbox until it is stopped or fails.

    It sleeps in the mailbox while there is no work, and looks into it between steps.

    Args:
        engine: The engine.
        mailbox: Its connection.
        clock: Monotonic. Seconds.
    """

    def __init__(
        self, engine: Engine, mailbox: Mailbox, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._mailbox = mailbox
        self._clock = clock
        self._is_stopped = False
        self.turns = 0
        """How often it has gone round, for who watches whether it does."""
        self._on_idle: Callable[[], None] | None = None
        self._has_worked = False
        self._next_state_s = clock()
        self._failures = 0

    def stop(self) -> None:
        """Make :meth:`run` return after the step at hand, or within a second when it is idle.

        May be called from any thread; any message wakes an idle loop at once.
        """
        self._is_stopped = True

    def when_idle(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once no work is left, a second after steps or messages at most.

        What many requests took on their way in is free again, even while they wait.
        """
        self._on_idle = call

    def run(self) -> None:
        """Serve until :meth:`stop`.

        Raises:
            Exception: The engine failed; a ``Crashed`` message has been sent.
        """
        try:
            while not self._is_stopped:
                self._turn()
        except Exception as error:
            # The process boundary: say why before going down.
            log.exception("The engine cannot continue")
            self._mailbox.send([crash_report(error)])
            raise

    def _turn(self) -> None:
        """Take in messages, run a step if there is work, send what came of it."""
        self.turns += 1
        engine = self._engine
        messages = self._mailbox.receive(0.0 if engine.has_work else self._idle_s())
        replies = engine.receive(messages) if messages else []
        self._has_worked |= bool(messages)
        if engine.is_preparing:
            replies += engine.take_prepared()
        if engine.has_work:
            replies += self._step()
            self._has_worked = True
        if self._clock() >= self._next_state_s:
            self._next_state_s = self._clock() + STATE_EVERY_S
            self._note_idle()
            replies.append(
                msgspec.structs.replace(engine.state(), received=self._mailbox.num_received)
            )
        if replies:
            self._mailbox.send(replies)

    def _idle_s(self) -> float:
        """Return how long it may sleep. Seconds."""
        idle_s = max(0.0, self._next_state_s - self._clock())
        return min(idle_s, PREPARING_POLL_S) if self._engine.is_preparing else idle_s

    def _note_idle(self) -> None:
        if self._on_idle is not None and self._has_worked and not self._engine.has_work:
            self._has_worked = False
            self._on_idle()

    def _step(self) -> list[FromEngine]:
        try:
            replies = self._engine.step()
        except RunnerError as failure:
            log.exception("The runner failed; its requests end, the others continue")
            replies = self._engine.recover(failure)
            self._failures += 1
            if self._failures == MAX_FAILURES:
                self._mailbox.send(replies)
                raise
        else:
            self._failures = 0
        return replies
