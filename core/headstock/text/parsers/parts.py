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
        text: With ``text`` and ``reasoning``, and with ``arguments``: more of the last call's.
        call: With ``call``.
        is_open: With ``call``: its arguments follow.
        is_last: With ``arguments``: they are whole now.
    """

    kind: Literal["text", "reasoning", "call", "arguments"]
    text: str = ""
    call: Call | None = None
    is_open: bool = False
    is_last: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningFormat:
    """How a model family marks what it thinks before it answers.

    Attributes:
        name: As ``--reasoning-parser`` has it.
        begin: Stands before the thoughts, in the answer or at the end of the prompt.
        end: Stands after them.
        marks: A chat template that has all of these writes this format.
        drops: Texts that are neither said nor thought.
        follows: What must come between ``end`` and a call; "": white space may.
    """

    name: str
    begin: str
    end: str
    marks: tuple[str, ...]
    drops: tuple[str, ...] = ()
    follows: str = ""


NUMBER = "\0"
"""In a text of :class:`Writing`: the number of the call, the first is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """How a parameter is written that stands by itself, not in a JSON object.

    Attributes:
        before: Stands before its name.
        named: Stands between its name and its value.
        named_json: The same before a value that is not text; "": the same text.
        after: Ends a value; a value that is text cannot have it.
        after_json: The same of a value that is not text; None: the same text.
        space: Stands after that.
        between: Stands between parameters.
        never: What else a value that is text cannot have.
        is_python: Whether texts are quoted, and True and False are written so.
    """

    before: str = ""
    named: str
    named_json: str = ""
    after: str = ""
    after_json: str | None = None
    space: str = ""
    between: str = ""
    never: tuple[str, ...] = ()
    is_python: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How calls are written between the marks of their format: the form that is asked for.

    What is read is wider, since models write as they learned to.

    Attributes:
        opens: Stands after the mark that begins.
        head: Stands before a function's name.
        named: Stands between its name and its arguments.
        tagged: How its parameters are written; None: as one JSON object.
        tail: Stands after its arguments.
        between: Stands between calls within the same marks; None: marks enclose one call.
        closes: Stands before the mark that ends.
        apart: Stands between marks of several calls; None: an answer has the marks once.
    """

    opens: str = ""
    head: str = ""
    named: str
    tagged: Tagged | None = None
    tail: str = ""
    between: str | None = None
    closes: str = ""
    apart: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """How a model family writes calls of functions.

    Attributes:
        name: As ``--tool-call-parser`` has it.
        begin: Stands before one call or a list of them; "": the answer is the calls, or has none.
        end: Stands after them; "": the end of the answer.
        read: From what is between, the calls; None: that is no call.
        marks: A chat template that has all of these writes this format.
        writings: How calls are written; a model may choose.
        others: What a model may write in place of ``begin``.
        at_start: The same where an answer starts; "": nothing.
    """

    name: str
    begin: str
    end: str
    read: Callable[[str, Tools], list[Call] | None]
    marks: tuple[str, ...]
    writings: tuple[Writing, ...]
    others: tuple[str, ...] = ()
    at_start: str = ""
