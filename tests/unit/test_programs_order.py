"""Joins wait no sooner than what they bring is needed, and nothing comes out otherwise for that."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstock.programs import UNLIMITED, Branch, Generated, Outcome, Program, check, run_program
from headstock.programs import interpreter as interpreter_module
from headstock.programs.graph import Fork, Gen, Join, Scope, Select, Start, Text, Var
from headstock.programs.model import Chosen, Usage


class Model:
    """Makes of a text a shorter one, in as many turns of the event loop as it is told."""

    def __init__(self, turns: int = 3) -> None:
        self.turns = turns
        self.open = 0
        self.most_open = 0

    async def generate(self, state: Branch, step: Gen, on_text: Any) -> Generated:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.open -= 1
        return Generated([f"<{hash(state.all_text) % 97}>"], Usage())

    async def select(self, state: Branch, step: Select) -> Chosen:
        await asyncio.sleep(0)
        return Chosen(len(state.all_text) % len(step.choices), Usage())


def played(steps: list[Any], model: Model, states: dict[str, Start] | None = None) -> Outcome:
    program = Program(steps=steps, **({} if states is None else {"states": states}))
    check(program, UNLIMITED)
    return asyncio.run(run_program(program, model))


def found(outcome: Outcome) -> dict[str, tuple[str, dict[str, Any]]]:
    return {name: (one.all_text, one.variables) for name, one in outcome.states.items()}


FORKED = [
    Text(text="ab"),
    Fork(into=["c", "d"]),
    Gen(state="c", name="x"),
    Gen(state="d", name="x"),
    Join(states=["c", "d"]),
]


def test_what_follows_a_join_and_needs_nothing_of_it_is_generated_beside_the_states() -> None:
    model = Model()
    outcome = played([*FORKED, Text(text="more"), Gen(name="y")], model)
    assert model.most_open == 3
    assert len(outcome.states["main"].variables["x"]) == 2


@pytest.mark.parametrize(
    "needy",
    [
        [Text(text=["so ", Var(var="x", index=0)]), Gen(name="y")],
        [Gen(name="x")],
        [Fork(into=["e"]), Gen(state="e", name="y")],
    ],
    ids=["reads", "sets", "forks"],
)
def test_what_needs_something_of_it_waits(needy: list[Any]) -> None:
    model = Model()
    played([*FORKED, *needy], model)
    assert model.most_open == 2


def test_a_state_that_was_forked_before_brings_what_it_had_set() -> None:
    old = Start(text="ab", variables={"x": "1"}, fresh=["x"])
    outcome = played(
        [Join(states=["c"]), Text(text=["so ", Var(var="x", index=0)])],
        Model(),
        {"main": Start(text="ab"), "c": old},
    )
    assert outcome.states["main"].text == "abso 1"


NAMES = st.sampled_from(["x", "y", "z"])


@st.composite
def programs(draw: st.DrawFn) -> list[Any]:
    """Programs of a state that forks and joins, over and over, with steps in between."""
    steps: list[Any] = [Text(text="ab"), Gen(name="x")]
    known, count = {"x"}, 0
    for _ in range(draw(st.integers(1, 4))):
        children = [f"s{count + index}" for index in range(draw(st.integers(1, 3)))]
        count += len(children)
        steps.append(Fork(into=children))
        for child in children:
            for name in draw(st.lists(NAMES, max_size=2)):
                steps.append(Text(state=child, text=f"{child}{name}"))
                steps.append(Gen(state=child, name=name))
                known.add(name)
        is_gathered = draw(st.booleans())
        steps.append(Join(states=children, mode="gather" if is_gathered else "concatenate"))
        for kind in draw(st.lists(st.sampled_from("tgsvc"), max_size=4)):
            name = draw(NAMES)
            if kind == "t":
                steps.append(Text(text=name))
            elif kind == "g":
                steps.append(Gen(name=name))
            elif kind == "s":
                steps.append(Select(name=name, choices=["a", "bc"]))
            elif kind == "c":
                steps += [Scope(name=name), Text(text="in"), Scope(name=name, is_end=True)]
            else:
                steps.append(Text(text=["<", Var(var="x"), ">"]))
    return steps


@given(programs(), st.integers(0, 3))
def test_everything_comes_out_as_in_the_given_order(steps: list[Any], turns: int) -> None:
    late = found(played(steps, Model(turns)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter_module, "with_late_joins", lambda steps, *_: steps)
        strict = found(played(steps, Model(turns)))
    assert late == strict
