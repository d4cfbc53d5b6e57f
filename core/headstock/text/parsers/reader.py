"""An answer's text, as it comes, to its parts.

However the text is split, the parts join to the same: every decision waits until it is certain.
What might become a mark is held back, and so is white space that a mark would swallow.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import Literal

from headstock.text.parsers.bound import BoundCalls, can_stream
from headstock.text.parsers.parts import CallFormat, Part, ReasoningFormat, Tools

_MAX_ENDS = 16
"""End marks that are tried for one call: one may stand in an argument, many are no call."""
_MAX_BROKEN = 16
"""Begun calls that turned out to be none, after which an answer is read for words only. Both bound
what reading costs, which otherwise grows with the cube of what a client makes the model repeat."""


class _State(Enum):
    START = auto()  # nothing has been said yet: thoughts may begin
    THOUGHT = auto()
    TEXT = auto()
    CALL = auto()


class PartReader:
    """Reads one answer.

    Args:
        reasoning: How thoughts are marked; None: they are text.
        calls: How calls are written; None: they are text.
        tools: Functions that may be called.
        is_thinking: Whether the prompt has begun the thoughts.
        max_calls: Calls after which the rest is dropped; None: no bound.
        is_bound: Whether a grammar makes calls be written as the format describes them: then their
            arguments are sent as they come, where the format allows it.
    """

    def __init__(
        self,
        reasoning: ReasoningFormat | None,
        calls: CallFormat | None,
        tools: Tools,
        *,
        is_thinking: bool = False,
        max_calls: int | None = None,
        is_bound: bool = False,
    ) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._tools = tools
        self._left = max_calls
        self._bound: BoundCalls | None = None
        if calls is not None and is_bound and can_stream(calls):
            self._bound = BoundCalls(calls)
        self._begins: tuple[str, ...] = ()
        """Marks that begin calls; a grammar leaves the first of them only."""
        if calls is not None and calls.begin:
            self._begins = (calls.begin, *(() if is_bound else calls.others))
        self._begun = ""
        """The mark that began the calls at hand."""
        self._state = _State.THOUGHT if is_thinking and reasoning is not None else _State.START
        self._pending = ""
        self._searched = 0
        """How far the body of a call has been searched for its end."""
        self._is_fresh = self._state is _State.THOUGHT
        """Whether white space that comes is dropped: a part has just ended."""
        self._is_last = False
        self._num_ends = 0
        self._num_broken = 0
        self.num_calls = 0

    @property
    def is_thinking(self) -> bool:
        """Whether what comes now are thoughts."""
        return self._state is _State.THOUGHT

    def push(self, text: str) -> list[Part]:
        """Take more text; return what is certain."""
        self._pending += text
        return self._run()

    def flush(self) -> list[Part]:
        """Return what was held back, now that no more comes."""
        self._is_last = True
        return self._run()

    def _run(self) -> list[Part]:
        parts: list[Part] = []
        while self._pending and (more := self._step()) is not None:
            parts += more
        return parts

    def _step(self) -> list[Part] | None:
        """Return parts, perhaps none, and be called again; None: more text is needed."""
        if self._left == 0:
            self._pending = ""
            return None
        match self._state:
            case _State.THOUGHT:
                return self._think()
            case _State.CALL:
                return self._call()
            case _:
                return self._begin_bare() if self._may_be_bare() else self._say()

    def _think(self) -> list[Part] | None:
        assert self._reasoning is not None, "thoughts without a format"
        thought, mark = self._before([self._reasoning.end])
        if not mark:
            return self._part("reasoning", thought, holds=True)
        self._state = _State.TEXT
        return self._part("reasoning", thought, mark)

    def _say(self) -> list[Part] | None:
        marks = self._marks()
        said, mark = self._before(marks)
        if self._state is _State.START and said.strip():
            self._state = _State.TEXT  # thoughts come before anything that is said, or not at all
            return []
        if not mark:
            return self._part("text", said, holds=bool(marks))
        if mark in self._begins or (mark and mark == self._at_start()):
            self._begin_call(mark)
        elif self._reasoning is not None and mark == self._reasoning.begin:
            self._state = _State.THOUGHT
        return self._part("text", said, mark)

    def _part(
        self, kind: Literal["text", "reasoning"], text: str, mark: str = "", *, holds: bool = False
    ) -> list[Part] | None:
        """Take ``text`` and the mark after it off what is pending; return it as a part.

        Args:
            kind: Of the part.
            text: How the pending text begins.
            mark: What follows it; white space around a mark belongs to it. "": nothing yet.
            holds: Whether a mark may follow, so that white space at the end waits.
        """
        rest = self._pending[len(text) + len(mark) :]
        if self._is_fresh:
            text = text.lstrip()
        is_trimmed = bool(mark) or (self._is_last and kind == "reasoning")
        shown = text.rstrip() if is_trimmed or (holds and not self._is_last) else text
        self._pending = rest if is_trimmed else text[len(shown) :] + rest
        if mark:
            self._is_fresh = True
        elif shown:
            self._is_fresh = False
        parts = [Part(kind, shown)] if shown else []
        return parts if parts or mark or self._is_last else None

    def _call(self) -> list[Part] | None:
        """Read the calls up to the first end mark that leaves whole ones."""
        assert self._calls is not None, "a call without a format"
        if self._bound is not None:
            return self._bound_call(self._bound)
        end = self._calls.end
        while end and (at := self._pending.find(end, self._searched)) >= 0:
            self._searched = at + 1
            parts = self._read(self._pending[:at])
            if parts is not None:
                self._pending = self._pending[at + len(end) :]
                return parts
            self._num_ends += 1
            if self._num_ends == _MAX_ENDS:
                return self._no_call()
        if not self._is_last:
            self._searched = max(self._searched, len(self._pending) - len(end))
            return None
        parts = self._read(self._pending)
        if parts is not None:
            self._pending = ""
            return parts
        return self._no_call()

    def _no_call(self) -> list[Part]:
        """Take the mark of what is no call for text, and what follows, unless a call follows."""
        self._num_broken += 1
        self._state, self._is_fresh = _State.TEXT, False
        return [Part("text", self._begun)] if self._begun else []

    def _bound_call(self, bound: BoundCalls) -> list[Part] | None:
        """Read calls that a grammar bound, as far as they have come."""
        parts, self._pending, is_over = bound.read(self._pending)
        for part in parts:
            self.num_calls += part.call is not None
            if part.is_last and self._left is not None:
                self._left -= 1
        if is_over:
            self._state, self._is_fresh = _State.TEXT, True
        elif self._is_last and bound.has_begun:
            self._pending = ""  # cut short: what was sent of the call is all there is
        elif self._is_last:
            return self._no_call()
        return parts if parts or is_over else None

    def _read(self, body: str) -> list[Part] | None:
        assert self._calls is not None, "a call without a format"
        calls = self._calls.read(body, self._tools)
        if calls is None:
            return None
        if self._left is not None:
            calls = calls[: self._left]
            self._left -= len(calls)
        self.num_calls += len(calls)
        self._state, self._is_fresh = _State.TEXT, True
        return [Part("call", call=call) for call in calls]

    def _may_be_bare(self) -> bool:
        """Whether the answer may be nothing but calls, which only its end will show."""
        if self._calls is None or self._calls.begin:
            return False
        is_begin = self._state is _State.START or self._is_fresh
        return is_begin and self._pending.lstrip()[:1] in ("[", "{")

    def _begin_bare(self) -> list[Part]:
        self._begin_call()
        return []

    def _begin_call(self, mark: str = "") -> None:
        self._state, self._searched, self._num_ends = _State.CALL, 0, 0
        self._begun = mark

    def _before(self, marks: Sequence[str]) -> tuple[str, str]:
        """Return the pending text before the first mark, and the mark.

        Of several at one place the longest, which may still be incomplete. Without a mark: the text
        before what may become one, and "".
        """
        pending = self._pending
        found = [(at, -len(mark), mark) for mark in marks if (at := pending.find(mark)) >= 0]
        if found:
            at, _, mark = min(found)
            rest = pending[at:]
            is_cut = any(len(other) > len(rest) and other.startswith(rest) for other in marks)
            return pending[:at], "" if is_cut and not self._is_last else mark
        if self._is_last:
            return pending, ""
        return pending[: min(_partial(pending, mark) for mark in marks) if marks else None], ""

    def _at_start(self) -> str:
        """Return the mark that begins calls at the answer's start alone; "": there is none now."""
        is_start = self._state is _State.START and self._bound is None
        return self._calls.at_start if self._calls is not None and is_start else ""

    def _marks(self) -> list[str]:
        marks = list(self._begins) if self._num_broken < _MAX_BROKEN else []
        if at_start := self._at_start():
            marks.append(at_start)
        if self._reasoning is not None:
            marks += self._reasoning.drops
            if self._state is _State.START or self._reasoning.drops:
                marks.append(self._reasoning.begin)
        return marks


def _partial(text: str, mark: str) -> int:
    """Return where a tail of ``text`` begins that ``mark`` begins with."""
    at = text.find(mark[0], max(0, len(text) - len(mark) + 1))
    while at >= 0:
        if mark.startswith(text[at:]):
            return at
        at = text.find(mark[0], at + 1)
    return len(text)
