"""Runs a program: states at the same time, the steps of each in order, joins as late as may be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from headstock.errors import RequestError
from headstock.programs.branch import Branch
from headstock.programs.check import step_of
from headstock.programs.events import Delta, Event, StepDone, StepReport
from headstock.programs.graph import (
    AnyStep,
    Fork,
    Gen,
    InnerStep,
    Join,
    Media,
    MediaPart,
    Program,
    Scope,
    Select,
    Text,
    When,
)
from headstock.programs.model import Model, Usage
from headstock.programs.order import with_late_joins
from headstock.programs.reasoning import split

Emit = Callable[[Event], None]


@dataclass(slots=True)
class Outcome:
    """What came of a program: its states as they ended, and its gens and selects."""

    states: dict[str, Branch] = field(default_factory=dict[str, Branch])
    done: list[StepDone] = field(default_factory=list[StepDone])


async def run_program(program: Program, model: Model, emit: Emit | None = None) -> Outcome:
    """Run a checked program to its end.

    The first step that fails ends all others.

    Args:
        program: One that :func:`headstock.programs.check` has let through.
        model: Generates.
        emit: Called with each event as it happens.

    Raises:
        RequestError: A step cannot be served; ``field`` names it.
    """
    run = _Run(program, model, emit)
    try:
        async with asyncio.TaskGroup() as group:
            for name in run.tracks:
                group.create_task(run.play(name))
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    return run.outcome


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


@dataclass(slots=True)
class _Track:
    """The steps about one state, and how far it is.

    Attributes:
        position: Steps done; who joins it waits for all that stand before the join.
    """

    branch: asyncio.Future[Branch]
    steps: list[tuple[str, AnyStep]] = field(default_factory=list[tuple[str, AnyStep]])
    position: int = 0
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def reach(self, position: int) -> None:
        """Wait until so many steps are done."""
        while self.position < position:
            self.moved.clear()
            await self.moved.wait()

    def advance(self) -> None:
        """Note that another step is done."""
        self.position += 1
        self.moved.set()


class _Run:
    """One run of a program."""

    def __init__(self, program: Program, model: Model, emit: Emit | None) -> None:
        loop = asyncio.get_running_loop()
        self._model = model
        self._emit = emit
        self._began_s = time.monotonic()
        self.outcome = Outcome()
        self.tracks: dict[str, _Track] = {}
        self._waits: dict[str, list[tuple[str, int]]] = {}
        for name, start in program.states.items():
            track = self.tracks[name] = _Track(branch=loop.create_future())
            track.branch.set_result(Branch.of(start))
        for index, step in enumerate(program.steps):
            if isinstance(step, Fork):
                for name in step.into:
                    self.tracks[name] = _Track(branch=loop.create_future())
            if isinstance(step, Join):
                ends = [(name, len(self.tracks[name].steps)) for name in step.states]
                self._waits[str(index)] = ends
            self.tracks[step.state].steps.append((str(index), step))
        given = {name: track.steps for name, track in self.tracks.items()}
        for track in self.tracks.values():
            track.steps = with_late_joins(track.steps, given, program.states)

    async def play(self, name: str) -> None:
        """Do the steps of one state."""
        track = self.tracks[name]
        branch = self.outcome.states[name] = await track.branch
        for number, step in track.steps:
            try:
                await self._do(name, branch, number, step)
            except RequestError as error:
                if step_of(error) is None:
                    error.field = f"steps[{number}].{error.field or step.__struct_config__.tag}"
                raise
            track.advance()

    async def _do(self, name: str, branch: Branch, number: str, step: AnyStep) -> None:
        match step:
            case Fork():
                for child in step.into:
                    self.tracks[child].branch.set_result(branch.fork())
            case Join():
                for child, position in self._waits[number]:
                    await self.tracks[child].reach(position)
                others = [await self.tracks[child].branch for child in step.states]
                branch.gather(others)
                if step.mode == "concatenate":
                    branch.concatenate(others)
            case Scope():
                branch.scope(step.name, is_end=step.is_end)
            case _:
                await self._do_inner(name, branch, number, step)

    async def _do_inner(self, name: str, branch: Branch, number: str, step: InnerStep) -> None:
        match step:
            case When():
                side = "then" if branch.holds(step.condition) else "else"
                steps: Sequence[InnerStep] = step.then if side == "then" else step.other
                for index, inner in enumerate(steps):
                    await self._do_inner(name, branch, f"{number}.{side}.{index}", inner)
            case Text():
                text = branch.render(step)
                branch.open(step.role)
                branch.add(text)
            case Media():
                branch.open(step.role)
                branch.add(MediaPart(kind=step.kind, url=step.url, num_frames=step.num_frames))
            case Gen():
                branch.open(step.role)
                await self._gen(name, branch, number, step)
            case Select():
                branch.open(step.role)
                await self._select(name, branch, number, step)

    async def _gen(self, name: str, branch: Branch, number: str, step: Gen) -> None:
        begin_s = self._now()

        def on_text(index: int, text: str) -> None:
            if self._emit is not None and text:
                self._emit(Delta(step=number, index=index, text=text))

        is_streamed = step.stream and step.reasoning is None and self._emit is not None
        found = await self._model.generate(branch, step, on_text if is_streamed else None)
        texts, reasoning = found.texts, found.reasoning
        if step.reasoning is not None and reasoning is None:
            pairs = [split(text, step.reasoning) for text in texts]
            texts, reasoning = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        branch.take(step.name, texts, reasoning)
        report = self._report(begin_s, found.usage)
        self._tell(
            StepDone(
                step=number,
                state=name,
                name=step.name,
                texts=texts,
                reasoning=reasoning,
                report=report,
            )
        )

    async def _select(self, name: str, branch: Branch, number: str, step: Select) -> None:
        begin_s = self._now()
        chosen = await self._model.select(branch, step)
        text = step.choices[chosen.index]
        branch.take(step.name, [text], None)
        scores = list(chosen.scores) or None
        logprobs = [list(row) for row in chosen.logprobs] or None
        report = self._report(begin_s, chosen.usage, scores, logprobs)
        self._tell(StepDone(step=number, state=name, name=step.name, texts=[text], report=report))

    def _report(
        self,
        begin_s: float,
        usage: Usage,
        scores: list[float] | None = None,
        logprobs: list[list[float]] | None = None,
    ) -> StepReport:
        end_s = self._now()
        first_s = None
        if usage.first_after_s is not None:  # by a clock that may be coarser than ours
            first_s = min(end_s, round(begin_s + max(0.0, usage.first_after_s), 6))
        return StepReport(
            begin_s=begin_s,
            first_s=first_s,
            end_s=end_s,
            queue_s=usage.queue_s,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=usage.finish_reason,
            matched=usage.matched,
            scores=scores,
            logprobs=logprobs,
            output=usage.output,
        )

    def _tell(self, done: StepDone) -> None:
        self.outcome.done.append(done)
        if self._emit is not None:
            self._emit(done)

    def _now(self) -> float:
        return round(time.monotonic() - self._began_s, 6)
