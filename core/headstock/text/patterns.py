"""Stop patterns: regular expressions whose cost is bounded, and what a match may begin with.

Patterns are RE2's: no look-around, no references back, ASCII classes. They are compiled to
automata of bounded memory, which take time linear in the text. Text arrives in pieces, so that two
automata are made of each: one finds matches, the other finds where a match may have begun.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

import re2  # pyright: ignore[reportMissingTypeStubs]

from headstock.errors import RequestError

_re2: Any = re2  # it has no type stubs

MAX_MEMORY = 256 * 1024
"""What an automaton may take, built and in use; a pattern that needs more is refused. Bytes."""
_FLAGS = re.compile(r"\(\?[imsU-]+\)")
_GROUP = re.compile(r"\((?:\?(?:P?<[^>]*>|(?P<flags>[imsU-]*):))?")
_REPEAT = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<low>\d+)(?P<to>,(?P<high>\d*))?\})\??")
_ESCAPE = re.compile(r"\\(?:[pP](?:\{[^}]*\}|.)|x(?:\{[^}]*\}|..)|[0-7]{1,3}|.)", re.DOTALL)
_EMPTY_ESCAPES = frozenset({r"\A", r"\b", r"\B", r"\z"})


class _Found(Protocol):
    def span(self) -> tuple[int, int]: ...


class _Automaton(Protocol):
    def search(self, text: str, pos: int) -> _Found | None: ...


class StopPattern:
    """One pattern, compiled; safe to use from several threads.

    Compiling takes up to some milliseconds: do it off the event loop.

    Args:
        source: A regular expression in RE2's syntax that matches no empty text.

    Raises:
        RequestError: It is not one, or it needs more than :data:`MAX_MEMORY`.
    """

    __slots__ = ("_begin", "_whole", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self._whole = _compile(source, source)
        part = _Parser(source).parse()
        if part.least == 0:
            raise _refused(source, "it matches the empty text")
        self._begin = _compile(rf"(?:{part.begin})\z", source)

    def find(self, text: str, start: int) -> tuple[int, int] | None:
        """Return begin and end of the first match at or after ``start``, or None.

        What stands before ``start`` is seen by assertions only, such as that of a word's edge.
        """
        found = self._whole.search(text, start)
        return None if found is None else found.span()

    def begun_at(self, text: str, start: int) -> int:
        """Return where the longest tail of ``text`` begins that may become a match."""
        found = self._begin.search(text, start)
        return len(text) if found is None else found.span()[0]


def compile_patterns(sources: list[str]) -> tuple[StopPattern, ...]:
    """Return ``sources`` compiled.

    Raises:
        RequestError: One cannot serve as a stop.
    """
    return tuple(map(StopPattern, sources))


def _compile(pattern: str, source: str) -> _Automaton:
    options = _re2.Options()
    options.max_mem = MAX_MEMORY
    options.log_errors = False
    try:
        return _re2.compile(pattern, options)
    except (_re2.error, UnicodeEncodeError) as error:
        reason: object = error.args[0]
        words = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise _refused(source, words) from error


def _refused(source: str, reason: str) -> RequestError:
    return RequestError(
        f"stop_regex {source!r} cannot be used: {reason}.",
        remedy="Give a pattern in RE2's syntax that needs at least one character, without"
        " look-around, references back or counts in the thousands.",
        field="stop_regex",
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a pattern.

    Attributes:
        whole: The piece, its groups without names.
        begin: A pattern of all that a text which matches the piece may begin with, from nothing
            to the whole of it.
        least: The shortest text that matches. Characters; more than one counts as one.
        takes_text: False for flags and assertions.
    """

    whole: str
    begin: str
    least: int
    takes_text: bool = True


class _Parser:
    """Reads the structure of a pattern that RE2 has taken; what an atom means is left to RE2."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0

    def parse(self) -> _Part:
        """Return the whole pattern as one part."""
        part = self._alternatives()
        if self._at != len(self._source):
            raise _refused(self._source, f"it cannot be read from character {self._at} on")
        return part

    def _alternatives(self) -> _Part:
        flags = ""  # set in one branch, they hold in those after it
        branches: list[_Part] = []
        while True:
            branch, new_flags = self._sequence()
            branches.append(_Part(branch.whole, f"(?:{flags}{branch.begin})", branch.least))
            flags += new_flags
            if not self._source.startswith("|", self._at):
                break
            self._at += 1
        return _Part(
            "|".join(branch.whole for branch in branches),
            "|".join(branch.begin for branch in branches),
            min(branch.least for branch in branches),
        )

    def _sequence(self) -> tuple[_Part, str]:
        """Return a branch, and the flags that it sets."""
        parts: list[_Part] = []
        flags = ""
        while self._at < len(self._source) and self._source[self._at] not in "|)":
            if found := _FLAGS.match(self._source, self._at):
                self._at = found.end()
                flags += found.group()
                parts.append(_Part(found.group(), found.group(), 0, takes_text=False))
            else:
                parts += self._repeated()
        begin = ""
        for part in reversed(parts):
            if not part.takes_text:
                begin = part.begin + begin
            else:
                begin = f"(?:(?:{part.begin})|(?:{part.whole})(?:{begin}))" if begin else part.begin
        least = min(1, sum(part.least for part in parts))
        return _Part("".join(part.whole for part in parts), begin, least), flags

    def _repeated(self) -> list[_Part]:
        """Return an atom as often as it is to stand there."""
        atoms = self._atoms()
        found = _REPEAT.match(self._source, self._at)
        if found is None or not atoms:
            return atoms
        self._at = found.end()
        atom = atoms.pop()
        low, high = _counts(found)
        if high == 0:
            return atoms
        if not atom.takes_text:  # an assertion that need not hold, or holds already
            return atoms if low == 0 else [*atoms, atom]
        times = "*" if high is None else f"{{0,{high - 1}}}"
        begin = f"(?:{atom.whole}){times}(?:{atom.begin})" if high != 1 else atom.begin
        return [*atoms, _Part(f"{atom.whole}{found.group()}", begin, atom.least if low else 0)]

    def _atoms(self) -> list[_Part]:
        """Return the next atom; several for a quoted text, none for an empty one."""
        source, at = self._source, self._at
        if source[at] == "(":
            return [self._group()]
        if source.startswith(r"\Q", at):
            end = source.find(r"\E", at + 2)
            text = source[at + 2 :] if end < 0 else source[at + 2 : end]
            self._at = len(source) if end < 0 else end + 2
            return [_one(_re2.escape(letter)) for letter in text]
        if source[at] == "[":
            self._at = self._end_of_class()
        elif source[at] == "\\":
            self._at = self._end_of_escape(at)
        else:
            self._at += 1
        text = source[at : self._at]
        if text in _EMPTY_ESCAPES or text in ("^", "$"):
            return [_Part(text, "", 0, takes_text=False)]
        return [_one(text)]

    def _group(self) -> _Part:
        found = _GROUP.match(self._source, self._at)
        assert found is not None, f"no group at {self._at} of {self._source!r}"
        self._at = found.end()
        inner = self._alternatives()
        self._at += 1  # the closing parenthesis: RE2 has counted them
        flags = found.group("flags") or ""
        return _Part(f"(?{flags}:{inner.whole})", f"(?{flags}:{inner.begin})", inner.least)

    def _end_of_class(self) -> int:
        source = self._source
        at = self._at + 1
        at += source.startswith("^", at)
        at += source.startswith("]", at)  # as the first one it stands for itself
        while at < len(source) and source[at] != "]":
            if source[at] == "\\":
                at = self._end_of_escape(at)
            elif source.startswith("[:", at) and (end := source.find(":]", at + 2)) >= 0:
                at = end + 2
            else:
                at += 1
        return at + 1

    def _end_of_escape(self, at: int) -> int:
        found = _ESCAPE.match(self._source, at)
        assert found is not None, f"no escape at {at} of {self._source!r}"
        if found.group() == r"\C":
            raise _refused(self._source, r"\C is part of a character")
        return found.end()


def _one(text: str) -> _Part:
    """Return a part that takes exactly one character."""
    return _Part(text, f"(?:{text})?", 1)


def _counts(found: re.Match[str]) -> tuple[int, int | None]:
    """Return how often at least and at most; None: without end."""
    sign = found.group("sign")
    if sign is not None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
    low = int(found.group("low"))
    if found.group("to") is None:
        return low, low
    high = found.group("high")
    return low, int(high) if high else None
