"""Stop strings and stop patterns on text that arrives in pieces.

Text that may still become a match is held back, so that nothing past a match is ever published.
Costs are bounded: a stop string is found in time linear in the new text, a pattern in time linear
in a window of :data:`PATTERN_WINDOW` characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstock.text.patterns import StopPattern

PATTERN_WINDOW = 1024
"""Longest match of a stop pattern. Characters."""


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
        patterns: Compiled ones.
        keep_match: Publish the text that matched, too.
    """

    __slots__ = ("_before", "_held", "_keep_match", "_patterns", "_strings")

    def __init__(
        self,
        strings: Sequence[str],
        patterns: Sequence[StopPattern] = (),
        *,
        keep_match: bool = False,
    ) -> None:
        self._strings = tuple(strings)
        self._patterns = tuple(patterns)
        self._keep_match = keep_match
        self._held = ""
        self._before = ""
        """The last character published, which assertions such as ``\\b`` see."""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return what may be published, and what matched or None.

        After a match nothing more may be pushed.
        """
        pending = self._held + text
        match = self._find(pending)
        if match is not None:
            self._held = ""
            return pending[: match.end if self._keep_match else match.kept], match.matched
        cut = self._hold_from(pending)
        self._held = pending[cut:]
        if cut:
            self._before = pending[cut - 1]
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
        start = len(self._before)
        for pattern in self._patterns:
            found = pattern.find(self._before + pending, start)
            if found is not None and (best is None or found[0] - start < best.kept):
                best = Match(pattern.source, found[0] - start, found[1] - start)
        return best

    def _hold_from(self, pending: str) -> int:
        """Return where the longest tail begins that may become a match."""
        cut = len(pending)
        for stop in self._strings:
            cut = min(cut, _partial_from(pending, stop))
        start = len(self._before)
        for pattern in self._patterns:
            cut = min(cut, pattern.begun_at(self._before + pending, start) - start)
        return max(cut, len(pending) - self._longest_hold())

    def _longest_hold(self) -> int:
        longest = max(map(len, self._strings), default=0)
        return max(longest, PATTERN_WINDOW) if self._patterns else longest


def _partial_from(pending: str, stop: str) -> int:
    """Return where a tail of ``pending`` begins that ``stop`` begins with."""
    at = pending.find(stop[0], max(0, len(pending) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(pending[at:]):
            return at
        at = pending.find(stop[0], at + 1)
    return len(pending)
