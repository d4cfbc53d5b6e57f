"""Parts of a program that run in one request: recorded by its body, executed in the hub."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from headstock.errors import HeadstockError, RequestError
from headstock.frontend.backends.base import Backend
from headstock.frontend.errors import Line, ProgramError, located
from headstock.frontend.slots import Slot
from headstock.frontend.trace import TraceStep
from headstock.programs import (
    Branch,
    Delta,
    Event,
    Fork,
    Gen,
    Join,
    Program,
    Select,
    StepDone,
    numbered,
)
from headstock.programs.check import step_of
from headstock.programs.graph import AnyStep
from headstock.programs.replay import replay


@dataclass(eq=False, slots=True)
class Item:
    """A step as the body recorded it.

    Attributes:
        slot: Where its result goes; None: it has none of its own.
        segment: In which it was sent.
    """

    step: AnyStep
    line: Line
    slot: Slot | None
    pushed_s: float
    segment: Future[Segment] = field(default_factory=Future)


@dataclass(eq=False, slots=True)
class Segment:
    """Recorded steps that depend on each other, and on segments before.

    Attributes:
        items: The steps, in the program's order.
        starts: Segments in which the states that it does not fork itself ended last.
        done: Their states at its end, by name.
    """

    items: list[Item]
    starts: dict[str, Segment | Branch]
    trace: list[TraceStep]
    began_s: float
    done: Future[dict[str, Branch]] = field(default_factory=Future)
    results: dict[str, StepDone] = field(default_factory=dict[str, StepDone])
    _rows: dict[str, TraceStep] = field(default_factory=dict[str, TraceStep])

    async def execute(self, backend: Backend) -> None:
        """Run it, and give every slot its result. Raises nothing: errors go to the slots."""
        try:
            states = await self._states()
            starts = {name: branch.start() for name, branch in states.items()}
            program = Program(steps=[item.step for item in self.items], states=starts)
            self._note(program)
            if self._generates:
                await backend.run(program, self._hear)
            ended = await replay(program, self.results)
        except RequestError as error:
            self._fail(error)
        except HeadstockError as error:
            self._fail(ProgramError(error.problem, remedy=error.remedy, code="backend_failed"))
        except asyncio.CancelledError:
            self._fail(ProgramError("The program was cancelled.", remedy="Run it again."))
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of a program: its body gets the error
            self._fail(error)
        else:
            self.done.set_result(ended)

    @property
    def _generates(self) -> bool:
        steps = [item.step for item in self.items]
        return any(isinstance(step, Gen | Select) for _, step in numbered(steps))

    async def _states(self) -> dict[str, Branch]:
        """Wait for what the states begin with."""
        found: dict[str, Branch] = {}
        for name, before in self.starts.items():
            if isinstance(before, Segment):
                states = await asyncio.wrap_future(before.done)
                found[name] = states[name]
            else:
                found[name] = before
        return found

    def _hear(self, event: Event) -> None:
        match event:
            case Delta():
                slot = self._item(event.step).slot
                if slot is not None:
                    slot.push(event.index, event.text)
            case StepDone():
                self.results[event.step] = event
                item = self._item(event.step)
                self._rows[event.step].hear(event)
                if item.slot is not None and "." not in event.step:
                    item.slot.finish(event)

    def _item(self, number: str) -> Item:
        return self.items[int(number.partition(".")[0])]

    def _note(self, program: Program) -> None:
        """Begin the rows of the trace."""
        sent_s = time.monotonic() - self.began_s
        for number, step in numbered(program.steps):
            item = self._item(number)
            row = TraceStep.of(step, item.line, item.pushed_s - self.began_s, sent_s)
            self._rows[number] = row
            self.trace.append(row)

    def _fail(self, error: Exception) -> None:
        number = step_of(error) if isinstance(error, RequestError) else None
        if isinstance(error, RequestError):
            item = self._item(number) if number is not None else None
            error = located(error, item.line if item is not None else self.items[0].line)
        for item in self.items:
            if item.slot is not None:
                item.slot.finish(error)
        self.done.set_exception(error)
        self.done.exception()  # it is raised where a variable is read


def split(items: Sequence[Item]) -> list[list[Item]]:
    """Part recorded steps into groups that share no state, each in order."""
    groups: list[tuple[set[str], list[Item]]] = []
    for item in items:
        names = {item.step.state}
        if isinstance(item.step, Fork):
            names |= set(item.step.into)
        elif isinstance(item.step, Join):
            names |= set(item.step.states)
        touched = [group for group in groups if group[0] & names]
        if len(touched) == 1:
            touched[0][0].update(names)
            touched[0][1].append(item)
            continue
        merged_names = names.union(*(group[0] for group in touched))
        members = {id(member) for group in touched for member in group[1]} | {id(item)}
        merged = [member for member in items if id(member) in members]
        groups = [group for group in groups if not group[0] & names]
        groups.append((merged_names, merged))
    return [group[1] for group in groups]
