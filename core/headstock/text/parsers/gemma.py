"""Calls as Gemma writes them: ``call:name{city:"Rome",days:3}``, with quotes of its own."""

from __future__ import annotations

import json
import re
from typing import Any

from headstock.text.parsers.parts import Call

MAX_DEPTH = 32
_HEAD = re.compile(r"\s*call:(?P<name>[\w.\-/]+)\s*(?=\{)")
_KEY = re.compile(r"[^\s:{}\[\],\"]+")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_SPACE = re.compile(r"\s*")
_JSON = json.JSONDecoder()


class _WrongError(ValueError):
    """What is read is no value."""


def read_gemma(body: str, quote: str) -> list[Call] | None:
    """Read one call, or several after one another.

    Args:
        body: What the marks enclose.
        quote: Stands around texts; texts in JSON's quotes are read, too.
    """
    calls: list[Call] = []
    at = 0
    while body[at:].strip():
        head = _HEAD.match(body, at)
        if head is None:
            return None
        reader = _Values(body, quote, head.end())
        try:
            arguments = reader.value(MAX_DEPTH)
        except _WrongError:
            return None
        at = reader.at
        calls.append(Call(head.group("name"), json.dumps(arguments, ensure_ascii=False)))
    return calls or None


class _Values:
    """Reads values of ``text`` from ``at`` on."""

    def __init__(self, text: str, quote: str, at: int) -> None:
        self._text = text
        self._quote = quote
        self.at = at

    def value(self, depth: int) -> Any:
        """Read the next value.

        Raises:
            _WrongError: There is none.
        """
        if depth == 0:
            raise _WrongError
        self._skip()
        if self._takes("{"):
            return self._object(depth - 1)
        if self._takes("["):
            return self._list(depth - 1)
        return self._scalar()

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self._ends("}"):
            return found
        while True:
            key = self._key()
            self._skip()
            if not self._takes(":"):
                raise _WrongError
            found[key] = self.value(depth)
            if self._ends("}"):
                return found
            if not self._takes(","):
                raise _WrongError

    def _list(self, depth: int) -> list[Any]:
        found: list[Any] = []
        if self._ends("]"):
            return found
        while True:
            found.append(self.value(depth))
            if self._ends("]"):
                return found
            if not self._takes(","):
                raise _WrongError

    def _key(self) -> str:
        self._skip()
        text = self._quoted()
        if text is not None:
            return text
        found = _KEY.match(self._text, self.at)
        if found is None:
            raise _WrongError
        self.at = found.end()
        return found.group()

    def _scalar(self) -> Any:
        text = self._quoted()
        if text is not None:
            return text
        for word, value in _WORDS.items():
            if self._takes(word):
                return value
        found = _NUMBER.match(self._text, self.at)
        if found is None:
            raise _WrongError
        self.at = found.end()
        return json.loads(found.group())

    def _quoted(self) -> str | None:
        """Read a text in quotes; None: there is none here."""
        if self._takes(self._quote):
            end = self._text.find(self._quote, self.at)
            if end < 0:
                raise _WrongError
            text, self.at = self._text[self.at : end], end + len(self._quote)
            return text
        if not self._text.startswith('"', self.at):
            return None
        try:
            text, self.at = _JSON.raw_decode(self._text, self.at)
        except ValueError as error:
            raise _WrongError from error
        return text

    def _ends(self, mark: str) -> bool:
        self._skip()
        return self._takes(mark)

    def _takes(self, mark: str) -> bool:
        if not self._text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True

    def _skip(self) -> None:
        space = _SPACE.match(self._text, self.at)
        assert space is not None, "white space of no length always matches"
        self.at = space.end()
