"""Expressions to steps: which turn each belongs to, and where its result goes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from headstock.frontend.errors import Line, ProgramError
from headstock.frontend.expressions import (
    Branching,
    Choose,
    Expression,
    Generate,
    Joined,
    Picture,
    Ref,
    Turn,
    Words,
)
from headstock.frontend.run import Run
from headstock.frontend.slots import Slot
from headstock.programs import Gen, Media, Select, Text, When
from headstock.programs.graph import InnerStep

Compiled = tuple[InnerStep, Line, Slot | None]


@dataclass(slots=True)
class Place:
    """Where the next words of a state go.

    Attributes:
        role: Of the turn that is open; None: none is.
        is_new: The turn has no step yet: the next one begins it.
        is_chat: There were turns.
        has_text: There is plain text.
    """

    role: str | None = None
    is_new: bool = False
    is_chat: bool = False
    has_text: bool = False

    def copy(self) -> Place:
        """Return another one like it."""
        return Place(self.role, self.is_new, self.is_chat, self.has_text)


class Compiler:
    """Makes steps of one state.

    Args:
        state: Its name.
        run: What gens do that do not say themselves.
    """

    def __init__(self, state: str, run: Run) -> None:
        self.state = state
        self.place = Place()
        self.loose: dict[str, Slot] = {}
        """Variables that conditions may set: how they are read."""
        self._run = run
        self._num_unnamed = 0

    def compile(self, expression: Expression, line: Line) -> Iterator[Compiled]:
        """Yield the steps of ``expression``.

        Args:
            expression: What the program adds.
            line: Where.

        Raises:
            ProgramError: It cannot stand there.
        """
        match expression:
            case Joined():
                for part in expression.parts:
                    yield from self.compile(part, line)
            case Turn():
                yield from self._turn(expression, line)
            case Words():
                if expression.text:
                    role = self._take(line, is_text=True)
                    yield Text(state=self.state, text=expression.text, role=role), line, None
            case Ref():
                role = self._take(line, is_text=True)
                yield Text(state=self.state, text=[expression.var()], role=role), line, None
            case Picture():
                role = self._take(expression.line, is_text=False)
                media = Media(
                    state=self.state,
                    kind=expression.kind,
                    url=expression.url,
                    role=role,
                    num_frames=expression.num_frames,
                )
                yield media, expression.line, None
            case Generate():
                yield self._gen(expression)
            case Choose():
                yield self._select(expression)
            case Branching():
                yield from self._when(expression)
            case _:
                raise AssertionError(f"{expression} is not an expression")

    def settle(self, line: Line) -> Iterator[Compiled]:
        """Yield the step that begins a turn which has no step yet."""
        if self.place.is_new:
            role = self._take(line, is_text=True)
            yield Text(state=self.state, text="", role=role), line, None

    def _turn(self, turn: Turn, line: Line) -> Iterator[Compiled]:
        place = self.place
        if turn.begins:
            if place.role is not None:
                raise ProgramError(
                    f"A turn of the {turn.role} begins inside of the {place.role}'s.",
                    remedy="End one before the next begins.",
                    line=line,
                )
            if place.has_text:
                raise ProgramError(
                    f"A turn of the {turn.role} begins after plain text.",
                    remedy="Put all text of a conversation into turns.",
                    line=line,
                )
            place.role, place.is_new, place.is_chat = turn.role, True, True
        if turn.inner is not None:
            yield from self.compile(turn.inner, line)
        if turn.ends:
            if place.role != turn.role:
                raise ProgramError(
                    f"A turn of the {turn.role} ends that was not begun.",
                    remedy="Begin it first.",
                    line=line,
                )
            yield from self.settle(line)
            place.role = None

    def _take(self, line: Line, *, is_text: bool) -> str | None:
        """Return the role that the next step begins, if it begins a turn."""
        place = self.place
        if place.role is None:
            if place.is_chat:
                raise ProgramError(
                    "This stands outside of a turn.",
                    remedy="Put it into user(…), assistant(…) or system(…).",
                    line=line,
                )
            if not is_text:
                raise ProgramError(
                    "An image stands outside of a turn.", remedy="Put it into user(…).", line=line
                )
            place.has_text = True
            return None
        role = place.role if place.is_new else None
        place.is_new = False
        return role

    def _generated(self, line: Line, name: str | None) -> tuple[Any, str]:
        place = self.place
        if place.role not in (None, "assistant"):
            raise ProgramError(
                f"This generates in the {place.role}'s turn.",
                remedy="Only the assistant's is generated: put it into assistant(…).",
                line=line,
            )
        if name is None:
            name = f"_{self._num_unnamed}"
            self._num_unnamed += 1
        return self._take(line, is_text=True), name

    def _gen(self, gen: Generate) -> Compiled:
        role, name = self._generated(gen.line, gen.name)
        step = Gen(
            state=self.state,
            name=name,
            sampling_params={**self._run.sampling, **gen.params},
            role=role,
            stream=self._run.is_streamed,
            return_logprob=gen.return_logprob or self._run.return_logprob,
            top_logprobs_num=max(gen.top_logprobs_num, self._run.top_logprobs_num),
            logprob_start_len=(
                self._run.logprob_start_len
                if gen.logprob_start_len is None
                else gen.logprob_start_len
            ),
            reasoning=gen.reasoning,
        )
        return step, gen.line, Slot(name, gen.line, gen.shape)

    def _select(self, choose: Choose) -> Compiled:
        role, name = self._generated(choose.line, choose.name)
        step = Select(
            state=self.state, name=name, choices=choose.choices, method=choose.method, role=role
        )
        return step, choose.line, Slot(name, choose.line, choose.shape)

    def _when(self, branching: Branching) -> Iterator[Compiled]:
        yield from self.settle(branching.line)
        before = self.place.copy()
        then = self._side(branching.then, branching.line)
        after, self.place = self.place, before
        other: list[InnerStep] = []
        if branching.other is not None:
            other = self._side(branching.other, branching.line)
        if (after.role, after.is_new) != (self.place.role, self.place.is_new):
            raise ProgramError(
                "One side of this condition leaves a turn open and the other does not.",
                remedy="End the same turns on both sides.",
                line=branching.line,
            )
        self.place.is_chat |= after.is_chat
        self.place.has_text |= after.has_text
        step = When(state=self.state, condition=branching.condition, then=then, other=other)
        yield step, branching.line, None

    def _side(self, expression: Expression, line: Line) -> list[InnerStep]:
        found = list(self.compile(expression, line))
        self.loose |= {slot.name: slot for _, _, slot in found if slot is not None}
        return [step for step, _, _ in found]
