"""What an API process and an engine process say to each other.

An API process sends a ``ToEngine`` message, the engine answers with ``FromEngine`` ones. Both are
tagged unions that :mod:`msgspec` decodes strictly. Failure is a message too: every submitted
request gets exactly one :class:`Ended`. Here are the messages of the engine itself; those of
requests and of upkeep have files of their own.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from headstock.wire.base import Message
from headstock.wire.requests import Abort, AbortAll, Cut, Ended, Submit, Tokens, Vector
from headstock.wire.steps import RunnerLimits
from headstock.wire.upkeep import (
    AdapterReply,
    LoadAdapter,
    LoadWeights,
    ReadWeight,
    Sleep,
    StartProfile,
    StopProfile,
    UnloadAdapter,
    UpkeepReply,
    Wake,
    WeightRows,
)

PauseMode = Literal["abort", "retract", "in_place"]


class FlushCache(Message, frozen=True, kw_only=True, tag=True):
    """Forget every cached prefix that no live request uses."""

    call: int


class AskState(Message, frozen=True, kw_only=True, tag=True):
    """Answer with :class:`State`."""

    call: int


class Pause(Message, frozen=True, kw_only=True, tag=True):
    """Compute no more steps until :class:`Resume`; what is submitted waits. Answered by a State.

    Attributes:
        mode: What becomes of the requests that are here: they end (``abort``), give their pages
            back and wait again (``retract``), or stay as they are (``in_place``).
    """

    call: int
    mode: PauseMode


class Resume(Message, frozen=True, kw_only=True, tag=True):
    """Go on after a :class:`Pause`. Answered by a State."""

    call: int


class Started(Message, frozen=True, kw_only=True, tag=True):
    """The engine is ready.

    Attributes:
        model_facts: Lines for the banner, such as device and memory plan.
    """

    limits: RunnerLimits
    model_facts: dict[str, str] = {}


class Loading(Message, frozen=True, kw_only=True, tag=True):
    """Progress of the start-up: ``done`` of ``total`` units of ``phase``."""

    phase: str
    done: int = 0
    total: int = 0
    unit: str = ""


class Crashed(Message, frozen=True, kw_only=True, tag=True):
    """The engine cannot start or go on; it exits after this.

    Attributes:
        is_config: Whether the operator must change something, so that a restart is useless.
    """

    problem: str
    remedy: str
    is_config: bool


class Rested(Message, frozen=True, kw_only=True, tag=True):
    """The engine's process has ended on request; another starts when the server is woken.

    Attributes:
        problem: Why one that was to start did not, so that the server sleeps on; "": nothing.
        remedy: What the operator can do about it.
    """

    problem: str = ""
    remedy: str = ""


class Flushed(Message, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`FlushCache`: pages that were freed, and whether requests were live."""

    call: int
    freed_pages: int
    was_idle: bool


class GroupPages(msgspec.Struct, frozen=True):
    """The pages of a group of layers: held by requests, held by the cache alone, and all."""

    kind: str
    held: int
    cached: int
    total: int


class State(Message, frozen=True, kw_only=True, tag=True):
    """Answer to :class:`AskState`, and sent once a second: counters for health and metrics.

    Attributes:
        call: The call answered, or 0.
        received: Messages taken from the API process since the start; None: unknown.
        steps: Steps settled since the start: progress, for the watchdog.
        is_paused: Whether steps wait for a :class:`Resume`.
        totals: Monotonic counters by metric name (``prompt_tokens``, ``cached_tokens`` …).
        groups: Pages of each group of layers.
    """

    call: int = 0
    received: int | None = None
    steps: int
    running: int
    waiting: int
    free_pages: int
    cached_pages: int
    total_pages: int
    is_paused: bool = False
    totals: dict[str, float] = {}
    groups: list[GroupPages] = []


ToEngine = (
    Submit
    | Abort
    | AbortAll
    | Cut
    | FlushCache
    | AskState
    | Pause
    | Resume
    | LoadAdapter
    | UnloadAdapter
    | LoadWeights
    | StartProfile
    | StopProfile
    | Sleep
    | Wake
    | ReadWeight
)


FromEngine = (
    Tokens
    | Vector
    | Ended
    | Started
    | Loading
    | Crashed
    | Rested
    | Flushed
    | State
    | AdapterReply
    | UpkeepReply
    | WeightRows
)
