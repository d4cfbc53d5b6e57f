"""``/v1/programs``: its body, and what a program that has run is answered with."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from headstock.programs import Branch, Outcome, Program, StepDone, Value
from headstock.programs.events import ProgramUsage
from headstock.programs.graph import StartMessage
from headstock.server.request import Priority


class ProgramBody(Program, frozen=True, kw_only=True):
    """Body of ``/v1/programs``: steps, and the states that they begin with.

    Attributes:
        stream: Tell of each step when it is over, and of the text of gens with ``stream``.
        cache_salt: Cached prefixes are shared only with equal ones.
    """

    model: str | None = None
    stream: bool = False
    priority: Priority = 0
    cache_salt: str = ""


class StateAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A state as it ended: a conversation or a text."""

    variables: dict[str, Value]
    messages: list[StartMessage] = []
    text: str = ""


class ProgramAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of ``/v1/programs``.

    Attributes:
        variables: Of the state ``main``.
        states: All states, by name.
        steps: Gens and selects in the order in which they ended, with what they took.
    """

    id: str
    object: str = "program"
    created: int
    model: str
    variables: dict[str, Value]
    states: dict[str, StateAnswer]
    steps: list[StepDone]
    usage: ProgramUsage


def new_id() -> str:
    """Return an id for a program."""
    return f"program-{uuid.uuid4().hex}"


def usage_of(steps: Sequence[StepDone]) -> ProgramUsage:
    """Return the tokens of all ``steps``."""
    prompt = sum(step.report.prompt_tokens for step in steps)
    output = sum(step.report.completion_tokens for step in steps)
    cached = sum(step.report.cached_tokens for step in steps)
    return ProgramUsage(prompt, output, prompt + output, cached)


def answer(outcome: Outcome, program_id: str, model: str, created: int) -> ProgramAnswer:
    """Return what a program that has run is answered with."""
    main = outcome.states.get("main")
    return ProgramAnswer(
        id=program_id,
        created=created,
        model=model,
        variables=main.variables if main is not None else {},
        states={name: _state(branch) for name, branch in outcome.states.items()},
        steps=outcome.done,
        usage=usage_of(outcome.done),
    )


def _state(branch: Branch) -> StateAnswer:
    start = branch.start()
    return StateAnswer(start.variables, start.messages, start.text)
