"""What ``s += …`` takes: texts, turns, gens, selects, and sums of them. Making one does nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from headstock.errors import RequestError
from headstock.frontend.errors import Line, ProgramError, caller
from headstock.frontend.shapes import Shape
from headstock.programs import Condition, ReasoningMarks, Var
from headstock.programs.graph import SelectMethod


class Expression:
    """Base of all expressions; ``+`` puts them one after another."""

    __slots__ = ()

    def __add__(self, other: Any) -> Joined:
        return Joined([self, to_expression(other)])

    def __radd__(self, other: Any) -> Joined:
        return Joined([to_expression(other), self])


@dataclass(frozen=True, slots=True)
class Joined(Expression):
    """Expressions one after another."""

    parts: Sequence[Expression]


@dataclass(frozen=True, slots=True)
class Words(Expression):
    """A text."""

    text: str


@dataclass(frozen=True, slots=True)
class Ref(Expression):
    """The value of a variable, inserted where the program runs: reading it waits for nothing.

    Comparisons give conditions for :func:`headstock.when`.
    """

    name: str
    index: int | None = None

    def var(self) -> Var:
        """Return it as a part of a text."""
        return Var(var=self.name, index=self.index)

    def equals(self, text: str) -> Condition:
        """Return the condition that its text is this one."""
        return Condition(var=self.name, equals=text)

    def contains(self, text: str) -> Condition:
        """Return the condition that its text has this one in it."""
        return Condition(var=self.name, contains=text)

    def one_of(self, *texts: str) -> Condition:
        """Return the condition that its text is one of these."""
        return Condition(var=self.name, one_of=list(texts))

    def is_set(self) -> Condition:
        """Return the condition that it has a value."""
        return Condition(var=self.name, is_set=True)


@dataclass(frozen=True, slots=True)
class Turn(Expression):
    """A turn, or its beginning or end alone.

    Attributes:
        inner: What stands in it; None: not the whole turn.
    """

    role: str
    inner: Expression | None
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True, slots=True)
class Picture(Expression):
    """An image or a video."""

    kind: Literal["image", "video"]
    url: str
    num_frames: int | None
    line: Line = field(default_factory=caller)


@dataclass(frozen=True, slots=True)
class Generate(Expression):
    """A gen.

    Attributes:
        name: Of the variable; None: the state makes one up.
        params: Fields of ``SamplingParams``.
        shape: What the value is to be; None: the text as it is.
    """

    name: str | None
    params: dict[str, Any]
    shape: Shape | None
    return_logprob: bool = False
    top_logprobs_num: int = 0
    logprob_start_len: int | None = None
    reasoning: ReasoningMarks | None = None
    line: Line = field(default_factory=caller)


@dataclass(frozen=True, slots=True)
class Choose(Expression):
    """A select; ``shape`` reads the choice."""

    name: str | None
    choices: list[str]
    method: SelectMethod
    shape: Shape | None = None
    line: Line = field(default_factory=caller)


@dataclass(frozen=True, slots=True)
class Branching(Expression):
    """One expression or another."""

    condition: Condition
    then: Expression
    other: Expression | None
    line: Line = field(default_factory=caller)


def to_expression(value: Any) -> Expression:
    """Return what may be added to a state.

    Raises:
        ProgramError: ``value`` may not.
    """
    if isinstance(value, Expression):
        return value
    if isinstance(value, str):
        return Words(value)
    if isinstance(value, int | float):
        return Words(str(value))
    if isinstance(value, list | tuple):
        return Joined([to_expression(item) for item in value])  # pyright: ignore[reportUnknownVariableType]
    raise ProgramError(
        f"A {type(value).__name__} cannot be added to a state.",
        remedy="Add text, a turn, gen or select.",
        line=caller(),
    )


def refuse(problem: str, remedy: str, field: str | None = None) -> RequestError:
    """Return the error for the line of the program that is being executed."""
    return ProgramError(problem, remedy=remedy, line=caller(), field=field)
