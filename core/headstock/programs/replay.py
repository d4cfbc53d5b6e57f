"""Gives a program the results that it had, so that who sent it knows how its states ended."""

from __future__ import annotations

from collections.abc import Mapping

from headstock.programs.branch import Branch
from headstock.programs.events import StepDone
from headstock.programs.graph import Gen, Program, Select, numbered
from headstock.programs.interpreter import run_program
from headstock.programs.model import Chosen, Generated, OnText


class _Replay:
    """A model that answers what was answered before."""

    def __init__(self, program: Program, results: Mapping[str, StepDone]) -> None:
        self._numbers = {id(step): number for number, step in numbered(program.steps)}
        self._results = results

    async def generate(self, state: Branch, step: Gen, on_text: OnText | None) -> Generated:
        done = self._results[self._numbers[id(step)]]
        return Generated(done.texts, reasoning=done.reasoning)

    async def select(self, state: Branch, step: Select) -> Chosen:
        done = self._results[self._numbers[id(step)]]
        return Chosen(step.choices.index(done.texts[0]))


async def replay(program: Program, results: Mapping[str, StepDone]) -> dict[str, Branch]:
    """Return the states of ``program`` as they ended.

    Args:
        program: It has run.
        results: What its gens and selects brought, by the number of the step.
    """
    outcome = await run_program(program, _Replay(program, results))
    return outcome.states
