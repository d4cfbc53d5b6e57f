"""Calls that a grammar bound to their format, read while they are written.

What is read here is exactly what :class:`Writing` describes, so a call is certain as soon as its
name and the first brace of its arguments are there: the arguments go out as they come. Formats
whose arguments are no JSON object are read whole, by what the format's ``read`` is.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from headstock.text.parsers.parts import NUMBER, Call, CallFormat, Part, Writing


class _Place(Enum):
    HEAD = auto()  # before a call
    ARGUMENTS = auto()
    AFTER = auto()  # behind its arguments


class BoundCalls:
    """Reads what stands between the marks, for one answer.

    Args:
        calls: The format; :func:`can_stream` says which can be read so.
    """

    def __init__(self, calls: CallFormat) -> None:
        self._end = calls.end
        self._heads = [(_head(writing), writing) for writing in calls.writings]
        self._writing = calls.writings[0]
        self._place = _Place.HEAD
        self._is_first = True
        self._object = _ObjectEnd()

    @property
    def is_open(self) -> bool:
        """Whether the arguments of a call have begun and not ended."""
        return self._place is _Place.ARGUMENTS

    @property
    def has_begun(self) -> bool:
        """Whether a call between these marks was found."""
        return not self._is_first or self.is_open

    def read(self, text: str) -> tuple[list[Part], str, bool]:
        """Take ``text``; return its parts, what of it is not read yet, and whether the marks end.

        After their end the next ``text`` stands after a mark that begins.
        """
        parts: list[Part] = []
        while True:
            match self._place:
                case _Place.HEAD:
                    found = self._call(text)
                    if found is None:
                        return parts, text, False
                    part, text = found
                    parts.append(part)
                case _Place.ARGUMENTS:
                    size = self._object.scan(text)
                    self._place = _Place.AFTER if self._object.is_over else _Place.ARGUMENTS
                    if size:
                        parts.append(Part("arguments", text[:size], is_last=self._object.is_over))
                    text = text[size:]
                    if not self._object.is_over:
                        return parts, text, False
                    self._is_first = False
                case _Place.AFTER:
                    rest = self._after(text)
                    if rest is None:
                        return parts, text, False
                    text, is_over = rest
                    self._place = _Place.HEAD
                    if is_over:
                        self._is_first = True
                        return parts, text, True

    def _call(self, text: str) -> tuple[Part, str] | None:
        heads = self._heads if self._is_first else [(_next(self._writing), self._writing)]
        for head, writing in heads:
            found = head.match(text)
            if found is not None:
                self._writing, self._place = writing, _Place.ARGUMENTS
                self._object = _ObjectEnd()
                call = Call(found.group(1), "")
                return Part("call", call=call, is_open=True), text[found.end() :]
        return None

    def _after(self, text: str) -> tuple[str, bool] | None:
        """Return the text after a call, and whether the marks end there; None: more is needed."""
        writing = self._writing
        over = writing.tail + writing.closes + self._end
        if (writing.closes or self._end) and text.startswith(over):
            return text[len(over) :], True
        rest = text[len(writing.tail) :]
        has_next = writing.between is not None and text.startswith(writing.tail)
        return (rest, False) if has_next and _next(writing).match(rest) else None


def can_stream(calls: CallFormat) -> bool:
    """Return whether calls of this format have arguments that are sent as they come."""
    return all(writing.tagged is None for writing in calls.writings)


def _head(writing: Writing) -> re.Pattern[str]:
    return _pattern(writing.opens + writing.head, writing.named)


def _next(writing: Writing) -> re.Pattern[str]:
    return _pattern((writing.between or "") + writing.head, writing.named)


def _pattern(before: str, named: str) -> re.Pattern[str]:
    """Return what a call begins with, up to the brace of its arguments; group 1 is the name."""
    parts = [re.escape(part) for part in named.split(NUMBER)]
    return re.compile(rf"\s*{re.escape(before)}([\w.\-/]+){'[0-9]{1,3}'.join(parts)}(?=\{{)")


class _ObjectEnd:
    """Finds where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_text = False
        self._is_escaped = False
        self.is_over = False

    def scan(self, text: str) -> int:
        """Return how many characters of ``text`` belong to the object."""
        for index, char in enumerate(text):
            if self._is_text:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == '"':
                    self._is_text = False
            elif char == '"':
                self._is_text = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_over = True
                    return index + 1
        return len(text)
