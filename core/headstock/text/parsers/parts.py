"""The parts of an answer, and what describes a model family's way to write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Tools = Mapping[str, Mapping[str, Any]]
"""Functions that may be called: name to the JSON schema of their parameters."""


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the model wants called.

    Attributes:
        name: Of the function.
        arguments: A JSON object, as text.
    """

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an answer; pieces of the same kind are joined.

    Attributes:
        kind: What it is.
        text: With ``text`` and ``reasoning``.
        call: With ``call``: a whole one.
    """

    kind: Literal["text", "reasoning", "call"]
    text: str = ""
    call: Call | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How a model family marks what it thinks before it answers.

    Attributes:
        name: As ``--reasoning-parser`` has it.
        begin: Stands before the thoughts, in the answer or at the end of the prompt.
        end: Stands after them.
        marks: A chat template that has all of these writes this format.
        drops: Texts that are neither said nor thought.
    """

    name: str
    begin: str
    end: str
    marks: tuple[str, ...]
    drops: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How a model family writes calls of functions.

    Attributes:
        name: As ``--tool-call-parser`` has it.
        begin: Stands before one call or a list of them; "": the answer is the calls, or has none.
        end: Stands after them; "": the end of the answer.
        read: From what is between, the calls; None: that is no call.
        marks: A chat template that has all of these writes this format.
    """

    name: str
    begin: str
    end: str
    read: Callable[[str, Tools], list[Call] | None]
    marks: tuple[str, ...]
