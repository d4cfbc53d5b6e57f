"""Stop strings and stop patterns on text that arrives in pieces.

Text that may still become a match is held back, so that nothing past a match is ever published.
Costs are bounded: a stop string is found in time linear in the new text, a pattern sees a window
of :data:`PATTERN_WINDOW` characters and a time limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import regex

from headstock.errors import RequestError

PATTERN_WINDOW = 1024
"""Longest match of a stop pattern. Characters."""
PATTERN_TIMEOUT_S = 0.02
"""Longest that one search may take; a request whose pattern needs more ends with an error."""


@dataclass(frozen=True, slots=True)
class Match:
    """A stop that was found.

    Attributes:
        matched: The stop string, or the pattern.
        kept: Length of the pending text before the match. Characters.
        end: Where the match ends in the pending text. Characters.
    """

    matched: str
    kept: int
    end: int


class StopMatcher:
    """Watches the text of one request.

    Args:
        strings: Stop strings, none empty.
        patterns: Regular expressions.
        keep_match: Publish the text that matched, too.

    Raises:
        RequestError: A pattern does not compile, or matches the empty text.
    """

    __slots__ = ("_held", "_keep_match", "_patterns", "_strings")

    def __init__(
        self, strings: Sequence[str], patterns: Sequence[str] = (), *, keep_match: bool = False
    ) -> None:
        self._strings = tuple(strings)
        self._patterns = tuple(_compile(pattern) for pattern in patterns)
        self._keep_match = keep_match
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what may be published, and what matched or None.

        After a match nothing more may be pushed.

        Raises:
            RequestError: A pattern took too long.
        """
        pending = self._held + text
        match = self._find(pending)
        if match is not None:
            self._held = ""
            return pending[: match.end if self._keep_match else match.kept], match.matched
        cut = self._hold_from(pending)
        self._held = pending[cut:]
        return pending[:cut], None

    def flush(self) -> str:
        """Return the text held back, at the end of the request."""
        held, self._held = self._held, ""
        return held

    def _find(self, pending: str) -> Match | None:
        """Return the match that starts first; of those, the first listed."""
        best: Match | None = None
        for stop in self._strings:
            at = pending.find(stop)
            if at >= 0 and (best is None or at < best.kept):
                best = Match(stop, at, at + len(stop))
        for pattern in self._patterns:
            found = _search(pattern, pending, partial=False)
            if found is not None and (best is None or found.start() < best.kept):
                best = Match(pattern.pattern, found.start(), found.end())
        return best

    def _hold_from(self, pending: str) -> int:
        """Return where the longest tail begins that may become a match."""
        cut = len(pending)
        for stop in self._strings:
            cut = min(cut, _partial_from(pending, stop))
        for pattern in self._patterns:
            found = _search(pattern, pending, partial=True)
            if found is not None:
                cut = min(cut, found.start())
        return max(cut, len(pending) - self._longest_hold())

    def _longest_hold(self) -> int:
        longest = max(map(len, self._strings), default=0)
        return max(longest, PATTERN_WINDOW) if self._patterns else longest


def check_patterns(patterns: Sequence[str]) -> None:
    """Refuse patterns that cannot serve as stops.

    Raises:
        RequestError: One does not compile, or matches the empty text.
    """
    for pattern in patterns:
        _compile(pattern)


def _partial_from(pending: str, stop: str) -> int:
    """Return where a tail of ``pending`` begins that ``stop`` begins with."""
    at = pending.find(stop[0], max(0, len(pending) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(pending[at:]):
            return at
        at = pending.find(stop[0], at + 1)
    return len(pending)


def _compile(pattern: str) -> regex.Pattern[str]:
    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise RequestError(
            f"stop_regex {pattern!r} does not compile: {error}.",
            remedy="Give a regular expression.",
            field="stop_regex",
        ) from error
    if _search(compiled, "", partial=False) is not None:
        raise RequestError(
            f"stop_regex {pattern!r} matches the empty text.",
            remedy="Give a pattern that needs at least one character.",
            field="stop_regex",
        )
    return compiled


def _search(pattern: regex.Pattern[str], pending: str, *, partial: bool) -> regex.Match[str] | None:
    try:
        return pattern.search(pending, partial=partial, timeout=PATTERN_TIMEOUT_S)
    except TimeoutError as error:
        raise RequestError(
            f"stop_regex {pattern.pattern!r} took over {PATTERN_TIMEOUT_S * 1000:.0f} ms on"
            f" {len(pending)} characters.",
            remedy="Use a pattern without nested repetition.",
            field="stop_regex",
            code="stop_regex_too_slow",
        ) from error
