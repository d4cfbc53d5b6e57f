"""What the API process knows of its engine: from messages, never by asking a forward pass."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from headstock.wire.messages import Crashed, FromEngine, Loading, Rested, Started, State

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
