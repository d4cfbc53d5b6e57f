"""Server-sent events, and the bytes that most events of a stream have in common.

What never changes is encoded once, when the stream begins. A caller's own words cannot be taken
for the marks where the bytes are parted: their quotation marks are escaped.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headstock.server.completion import Delta

encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """Return ``value`` as one event."""
    return b"data: " + encode(value) + b"\n\n"


class TextEvent:
    """Events that differ in one text.

    Args:
        empty: Such an event, its text "".
        field: Name of the text's field.
    """

    __slots__ = ("_after", "_before")

    def __init__(self, empty: Any, field: str) -> None:
        self._before, self._after = _parted(event(empty), b'"%b":' % field.encode(), b'""')

    def write(self, text: str) -> bytes:
        """Return the event with ``text``."""
        return b"%b%b%b" % (self._before, encode(text), self._after)


class GrowingEvent:
    """Events that repeat a completion from its beginning, each made from the one before.

    Args:
        output_ids: The completion's tokens, which grow.
        empty: The event before the first token, with ``text``, ``output_ids`` and
            ``completion_tokens``, in this order.
    """

    __slots__ = ("_after", "_head", "_ids", "_middle", "_num_ids", "_output_ids", "_tail", "_text")

    def __init__(self, output_ids: list[int], empty: Any) -> None:
        self._head, rest = _parted(event(empty), b'"text":', b'""')
        self._middle, rest = _parted(rest, b'"output_ids":', b"[]")
        self._after, self._tail = _parted(rest, b'"completion_tokens":', b"0")
        self._output_ids = output_ids
        self._num_ids = 0
        self._text = bytearray()
        self._ids = bytearray()

    def write(self, delta: Delta) -> bytes:
        """Return the event after ``delta``, which is not the last."""
        if delta.text:
            self._text += encode(delta.text)[1:-1]
        count = delta.num_outputs
        for token_id in self._output_ids[self._num_ids : count]:
            self._ids += b",%d" % token_id if self._ids else b"%d" % token_id
        self._num_ids = count
        return b'%b"%b"%b[%b]%b%d%b' % (
            self._head, self._text, self._middle, self._ids, self._after, count, self._tail,
        )  # fmt: skip


def _parted(text: bytes, mark: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Return ``text`` up to and with the first ``mark``, and what follows its ``value``."""
    before, _, after = text.partition(mark + value)
    assert after, f"{mark!r} has no empty value in {text!r}"
    return before + mark, after


def named_event(value: dict[str, Any]) -> bytes:
    """Return ``value`` as an event named by its ``type``."""
    return b"event: %b\ndata: %b\n\n" % (value["type"].encode(), encode(value))
