"""How a state is read: as text, as messages, and as text that comes."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from typing import Any, TypeVar

from headstock.frontend.feed import Feed
from headstock.frontend.segments import Item, Segment
from headstock.frontend.slots import Slot
from headstock.programs import Branch, Gen, Join, Media, Message, Select, StepDone, Text, When
from headstock.programs.graph import MediaPart

T = TypeVar("T")


def flat(branch: Branch) -> str:
    """Return the plain text, or a line for each turn."""
    if not branch.messages:
        return branch.text
    return "\n".join(f"{message.role}: {message.text}" for message in branch.messages)


def messages(branch: Branch) -> list[dict[str, Any]]:
    """Return turns as OpenAI's clients write them."""
    return [{"role": m.role, "content": content(m)} for m in branch.messages]


def content(message: Message) -> str | list[dict[str, Any]]:
    """Return a turn's content: text, or parts where there are media."""
    if not message.has_media:
        return message.text
    return [_part(part) for part in message.content]


def _part(part: str | MediaPart) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = f"{part.kind}_url"
    return {"type": kind, kind: {"url": part.url}}


def meta_info(done: StepDone) -> dict[str, Any]:
    """Return what a step took, as ``meta_info`` of ``/generate`` has it."""
    report = done.report
    found: dict[str, Any] = {
        "id": f"{done.state}:{done.step}",
        "finish_reason": {"type": report.finish_reason, "matched": report.matched},
        "prompt_tokens": report.prompt_tokens,
        "completion_tokens": report.completion_tokens,
        "cached_tokens": report.cached_tokens,
        "queue_time": report.queue_s,
        "e2e_latency": report.end_s - report.begin_s,
    }
    if report.scores is not None:
        found["normalized_prompt_logprobs"] = report.scores
        found["input_token_logprobs"] = report.logprobs
    if report.output:
        found |= report.output[0]
    return found


def follow(state: str, feed: Feed[Item], name: str | None) -> Generator[str]:
    """Yield text as it comes.

    Args:
        state: Whose.
        feed: Its items.
        name: Of a variable; None: all of its text.
    """
    items = _queue(feed)
    shown = _Shown(state)
    while (item := items.get()) is not None:
        slot = item.slot
        if name is not None:
            if slot is None or slot.name != name:
                continue
            pieces = _queue(slot.pieces)
            while (piece := pieces.get()) is not None:
                yield piece
            slot.done.result()
            return
        if not shown.wants(item):
            continue
        yield shown.before(item)
        if slot is not None:
            pieces = _queue(slot.pieces)
            while (piece := pieces.get()) is not None:
                yield shown.add(piece)
            slot.done.result()
        elif shown.is_unknown(item):
            segment = item.segment.result()
            yield shown.rest(segment, segment.done.result()[state])


async def async_follow(state: str, feed: Feed[Item], name: str | None) -> AsyncGenerator[str]:
    """Yield text as it comes, as :func:`follow` does."""
    shown = _Shown(state)
    async for item in _aiter(feed):
        slot = item.slot
        if name is not None:
            if slot is None or slot.name != name:
                continue
            async for piece in _aiter(slot.pieces):
                yield piece
            await asyncio.wrap_future(slot.done)
            return
        if not shown.wants(item):
            continue
        yield shown.before(item)
        if slot is not None:
            async for piece in _aiter(slot.pieces):
                yield shown.add(piece)
            await asyncio.wrap_future(slot.done)
        elif shown.is_unknown(item):
            segment = await asyncio.wrap_future(item.segment)
            yield shown.rest(segment, (await asyncio.wrap_future(segment.done))[state])


async def with_meta(
    pieces: AsyncIterator[str], slot: Callable[[], Any]
) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield pairs of text and ``meta_info``: {} but for the last, whose text is ""."""
    async for piece in pieces:
        yield piece, {}
    found = slot()
    assert isinstance(found, Slot), "it was followed just now"
    yield "", meta_info(found.done.result())


class _Shown:
    """What of a state's text was yielded; of a fork, what it added to its parent's."""

    def __init__(self, state: str) -> None:
        self._is_fork = "." in state
        self._length = 0
        self._skipped: Segment | None = None

    def wants(self, item: Item) -> bool:
        """Whether the item's text is still to come."""
        if self._skipped is None or not item.segment.done():
            return True
        return item.segment.result() is not self._skipped

    def add(self, text: str) -> str:
        """Note that ``text`` is yielded."""
        self._length += len(text)
        return text

    def before(self, item: Item) -> str:
        """Return what stands before the item's own text, or is all of it."""
        step = item.step
        role = step.role if isinstance(step, Text | Gen | Select | Media) else None
        head = ""
        if role is not None:
            head = f"\n{role}: " if self._length or self._is_fork else f"{role}: "
        if isinstance(step, Text) and isinstance(step.text, str):
            head += step.text
        return "" if self.is_unknown(item) else self.add(head)

    def is_unknown(self, item: Item) -> bool:
        """Whether the text depends on what comes of the program."""
        step = item.step
        return isinstance(step, When | Join) or (
            isinstance(step, Text) and not isinstance(step.text, str)
        )

    def rest(self, segment: Segment, branch: Branch) -> str:
        """Return all that a part of the program brought and was not yielded yet."""
        self._skipped = segment
        return self.add(flat(branch)[_begun(branch) + self._length :])


def _begun(branch: Branch) -> int:
    """Return how much of :func:`flat` was there when the state was forked."""
    begun = branch.begun
    if begun is None:
        return 0
    if not begun.messages:
        return begun.text
    turns = list(branch.messages[: begun.messages])
    parts = turns[-1].content[: begun.parts]
    if parts and isinstance(parts[-1], str):
        parts = (*parts[:-1], parts[-1][: begun.characters])
    turns[-1] = Message(turns[-1].role, parts)
    return len(flat(Branch(turns)))


def _queue(feed: Feed[T]) -> queue.SimpleQueue[T | None]:
    found: queue.SimpleQueue[T | None] = queue.SimpleQueue()
    feed.listen(found.put)
    return found


async def _aiter(feed: Feed[T]) -> AsyncIterator[T]:
    loop = asyncio.get_running_loop()
    found: asyncio.Queue[T | None] = asyncio.Queue()

    def put(item: T | None) -> None:
        loop.call_soon_threadsafe(found.put_nowait, item)

    feed.listen(put)
    while (item := await found.get()) is not None:
        yield item
