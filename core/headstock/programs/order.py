"""When the steps of a state are done: a join waits no sooner than what it brings is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from headstock.programs.branch import REASONING
from headstock.programs.graph import (
    AnyStep,
    Gen,
    Join,
    Media,
    Scope,
    Select,
    Start,
    Text,
    Var,
    numbered,
)

Numbered = tuple[str, AnyStep]
Tracks = Mapping[str, Sequence[Numbered]]
Starts = Mapping[str, Start]


def with_late_joins(steps: Iterable[Numbered], tracks: Tracks, starts: Starts) -> list[Numbered]:
    """Return the steps of one state, joins that gather put behind what needs nothing of them.

    What is generated after such a join has the text from before it, so it is generated beside the
    states that are joined. Each step still finds what it would have found in the given order.

    Args:
        steps: Of the state, with their numbers.
        tracks: The steps of every state.
        starts: What states had before the program.
    """
    ordered: list[Numbered] = []
    late: list[Numbered] = []
    brought: set[str] = set()
    for number, step in steps:
        if isinstance(step, Join) and step.mode == "gather":
            late.append((number, step))
            brought |= _names_of(step.states, tracks, starts)
            continue
        if late and not _is_without(step, brought):
            ordered += late
            late, brought = [], set()
        ordered.append((number, step))
    return ordered + late


def _names_of(states: Sequence[str], tracks: Tracks, starts: Starts) -> set[str]:
    """Return the variables that ``states`` may set, or have set since they were forked."""
    names: set[str] = set()
    for state in states:
        if state in starts:
            names |= set(starts[state].fresh)
        for _, step in numbered([step for _, step in tracks[state]]):
            if isinstance(step, Gen | Select):
                names |= {step.name, step.name + REASONING}
            elif isinstance(step, Scope):
                names.add(step.name)
            elif isinstance(step, Join):
                names |= _names_of(step.states, tracks, starts)
    return names


def _is_without(step: AnyStep, names: set[str]) -> bool:
    """Return whether a step neither reads nor sets a variable of ``names``."""
    match step:
        case Text():
            parts = [] if isinstance(step.text, str) else step.text
            return not any(isinstance(part, Var) and part.var in names for part in parts)
        case Gen() | Select():
            return names.isdisjoint({step.name, step.name + REASONING})
        case Media():
            return True
        case _:
            return False
