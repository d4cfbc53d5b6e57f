"""What became of the last requests, for those who sent them: times and counts, never texts.

A ring for each owner, bounded in records and owners. What a token adds is a time and a count.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from headstock.server.completion import Completion
from headstock.wire.requests import Story

MAX_OWNERS = 256
"""Rings that are kept; past it the one that was used least recently goes."""
MAX_POINTS = 512
"""Times that a completion which is over keeps; past it neighbours are joined."""


@dataclass(frozen=True, slots=True)
class Call:
    """The call that requests belong to.

    Attributes:
        id: Unique; "": it has none, and no record.
        name: What its answer calls it: the id, or what its sender has named it.
        owner: Whose it is.
        route: The path's template.
        traceparent: The trace that it is part of, as the W3C writes it; "": none.
    """

    id: str = ""
    name: str = ""
    owner: str = ""
    route: str = ""
    traceparent: str = ""


NO_CALL = Call()


def points_of(times_s: Sequence[float], begin_s: float) -> list[tuple[float, int]]:
    """Return when tokens came, and how many since the point before; :data:`MAX_POINTS` at most.

    Args:
        times_s: One of each token, in order. Seconds.
        begin_s: What the points' times count from. Seconds.
    """
    points: list[tuple[float, int]] = [
        (round(at - begin_s, 4), len(list(same))) for at, same in groupby(times_s)
    ]
    each = -(-len(points) // MAX_POINTS)
    if each <= 1:
        return points
    groups = [points[i : i + each] for i in range(0, len(points), each)]
    return [(group[-1][0], sum(count for _, count in group)) for group in groups]


@dataclass(slots=True)
class CompletionRecord:
    """One completion of a call.

    Attributes:
        call: The call's record.
        completion: What was asked, and what has come of it; None once it is over.
        facts: What its record shows, complete once it is over.
        received_s: When the call came, by the event loop's clock. Seconds.
        sent_s: When the engine was asked, after that. Seconds.
        total_s: From the call to its end; None: it is not over. Seconds.
        times_s: When its tokens came, by that clock, while it lives. Seconds.
        points: The same once it is over, as :func:`points_of` has it.
        story: What the engine tells of it.
    """

    call: CallRecord
    completion: Completion | None
    facts: dict[str, Any]
    received_s: float
    sent_s: float
    total_s: float | None = None
    times_s: list[float] = field(default_factory=list[float])
    points: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    story: Story | None = None

    @property
    def state(self) -> str:
        """``waiting``, ``running`` or ``ended``."""
        if self.total_s is not None:
            return "ended"
        return "running" if self.times_s else "waiting"

    @property
    def first_s(self) -> float | None:
        """When its first token came, after the call; None: none has. Seconds."""
        if self.times_s:
            return self.times_s[0] - self.received_s
        return self.points[0][0] if self.points else None

    def close(self, now_s: float) -> None:
        """Note the end of the completion, which has its own."""
        completion = self.completion
        assert completion is not None, "a record is closed twice"
        end = completion.end
        assert end is not None, f"{completion.submit.id} is not over"
        self.total_s = now_s - self.received_s
        reason = end.reason
        self.facts |= {
            "finish_reason": reason.kind,
            "error": reason.code if reason.kind == "error" else None,
            "cached_tokens": completion.cached_tokens,
            "output_tokens": len(completion.output_ids),
            "queue_s": round(end.queue_s, 6),
            "retractions": end.num_retractions,
            "drafted_tokens": end.num_drafted,
            "accepted_tokens": end.num_accepted,
            "attempts": completion.submit.attempt + 1,
        }
        self.points = points_of(self.times_s, self.received_s)
        self.times_s = []
        self.completion = None  # its tokens and text are not kept

    def tell(self) -> dict[str, Any]:
        """Return what is known of it, plain."""
        shown = {**self.facts, "state": self.state, "sent_s": round(self.sent_s, 6)}
        if self.completion is not None:
            shown["cached_tokens"] = self.completion.cached_tokens
            shown["output_tokens"] = len(self.completion.output_ids)
        first_s = self.first_s
        shown["first_token_s"] = None if first_s is None else round(first_s, 4)
        shown["total_s"] = None if self.total_s is None else round(self.total_s, 6)
        return shown

    def tell_all(self) -> dict[str, Any]:
        """Return the same, with its story and its steps."""
        shown = self.tell()
        story = self.story
        if story is not None:
            shown["waits"] = {name: round(value, 6) for name, value in story.waits.items()}
            shown["evicted_pages"] = story.evicted_pages
            shown["shared_tokens"] = story.shared_tokens
            shown["chunks"] = self._chunks(story)
            shown["last_step"] = story.last_step
        shown["tokens"] = self.points or points_of(self.times_s, self.received_s)
        return shown

    def _chunks(self, story: Story) -> list[dict[str, Any]]:
        """Return the chunks of the prompt, with their times after the call."""
        chunks: list[dict[str, Any]] = []
        begin: int | None = self.facts.get("cached_tokens", 0)
        offset_s = self.sent_s + story.waits.get("grammar", 0.0)
        columns = zip(story.chunk_steps, story.chunk_ends, story.chunk_times_s, strict=True)
        for step, end, at_s in columns:
            if begin is not None and end <= begin:
                begin = None  # it was retracted: how much it found again is not recorded
            chunks.append(
                {"step": step, "begin": begin, "end": end, "at_s": round(offset_s + at_s, 6)}
            )
            begin = end
        return chunks


@dataclass(slots=True)
class CallRecord:
    """One call, and its completions.

    Attributes:
        received_at: When it came. Seconds since 1970.
        num_open: Completions that are not over.
    """

    call: Call
    model: str
    received_at: float
    completions: list[CompletionRecord] = field(default_factory=list[CompletionRecord])
    num_open: int = 0

    def tell(self) -> dict[str, Any]:
        """Return what is known of it in short."""
        completions = self.completions
        ends = [each.total_s for each in completions if each.total_s is not None]
        return {
            "id": self.call.name,
            "object": "request",
            "route": self.call.route,
            "model": self.model,
            "received": round(self.received_at, 6),
            "state": "ended" if not self.num_open else _state(completions),
            "total_s": round(max(ends), 6) if ends and not self.num_open else None,
            "completions": [each.tell() for each in completions],
        }

    def tell_all(self) -> dict[str, Any]:
        """Return all that is known of it."""
        return {**self.tell(), "completions": [each.tell_all() for each in self.completions]}


def _state(completions: Sequence[CompletionRecord]) -> str:
    return "running" if any(each.state == "running" for each in completions) else "waiting"


_NO_RING: OrderedDict[str, CallRecord] = OrderedDict()


class RecordBook:
    """The last calls of each owner.

    Args:
        size: Calls kept for an owner; 0: none.
        on_end: Called with each call when the last of its completions is over.
    """

    def __init__(self, size: int, on_end: Callable[[CallRecord], None] | None = None) -> None:
        self._size = size
        self._on_end = on_end
        self._rings: OrderedDict[str, OrderedDict[str, CallRecord]] = OrderedDict()

    def wants(self, call: Call) -> bool:
        """Return whether anything is recorded of a call."""
        return bool(call.id) and (self._size > 0 or self._on_end is not None)

    def begin(self, call: Call, model: str) -> CallRecord | None:
        """Return the record of a call; requests that follow of the same call have the same.

        None: nothing is recorded of it.
        """
        if not self.wants(call):
            return None
        ring = self._ring(call.owner)
        record = ring.get(call.id)
        if record is None:
            record = ring[call.id] = CallRecord(call, model, time.time())
            if len(ring) > self._size:
                ring.popitem(last=False)
        return record

    def add(
        self, record: CallRecord, completion: Completion, received_s: float, now_s: float
    ) -> CompletionRecord:
        """Return the record of a completion of a call, whose request is sent now.

        Args:
            record: The call's.
            completion: The completion.
            received_s: When the call came, by the event loop's clock. Seconds.
            now_s: The same clock now. Seconds.
        """
        submit = completion.submit
        facts: dict[str, Any] = {
            "index": len(record.completions),
            "kind": "vector" if submit.pool else "text",
            "prompt_tokens": len(submit.prompt_ids),
            "max_tokens": None if submit.pool else submit.params.max_new_tokens,
            "temperature": None if submit.pool else submit.params.temperature,
            "top_p": None if submit.pool else submit.params.top_p,
            "has_grammar": submit.grammar is not None,
            "has_adapter": bool(submit.adapter),
            "images": len(submit.media),
            "priority": submit.priority,
        }
        one = CompletionRecord(record, completion, facts, received_s, now_s - received_s)
        record.completions.append(one)
        record.num_open += 1
        return one

    def end(self, one: CompletionRecord, now_s: float) -> None:
        """Note that a completion is over."""
        one.close(now_s)
        record = one.call
        record.num_open -= 1
        if not record.num_open and self._on_end is not None:
            self._on_end(record)

    def last(self, owner: str | None, count: int) -> list[CallRecord]:
        """Return the last ``count`` calls of ``owner``, the latest first; None: of all owners."""
        if owner is not None:
            ring = self._rings.get(owner, _NO_RING)
            return list(islice(reversed(ring.values()), count))
        records = [record for ring in self._rings.values() for record in ring.values()]
        return sorted(records, key=lambda one: one.received_at, reverse=True)[:count]

    def find(self, owner: str | None, name: str) -> CallRecord | None:
        """Return the latest call of ``owner`` that its answer called ``name``; None: of anyone."""
        if owner is None:
            return next(
                (one for one in self.last(None, sys.maxsize) if one.call.name == name), None
            )
        ring = self._rings.get(owner, _NO_RING)
        found = ring.get(name)
        if found is not None:
            return found
        return next((each for each in reversed(ring.values()) if each.call.name == name), None)

    def _ring(self, owner: str) -> OrderedDict[str, CallRecord]:
        ring = self._rings.get(owner)
        if ring is None:
            ring = self._rings[owner] = OrderedDict()
            if len(self._rings) > MAX_OWNERS:
                self._rings.popitem(last=False)
        self._rings.move_to_end(owner)
        return ring
