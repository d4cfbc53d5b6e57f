"""Server-sent events without a framework in the way: one write for all that a step brought."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import TracebackType
from typing import Any

from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.completion import Delta
from headstock.server.errors import message_of, retry_after_of, status_of, type_of
from headstock.server.generation import Generation
from headstock.server.http.answers import encode

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PING_S = 15.0
"""A comment is sent after so long a silence, so that proxies keep the connection. Seconds."""
DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Watch:
    """Aborts a generation when its client goes away; a context for as long as it matters."""

    def __init__(self, receive: Receive, generation: Generation) -> None:
        self._receive = receive
        self._generation = generation
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Watch:
        """Begin to watch."""
        self._task = asyncio.create_task(self._run())
        return self

    def stop(self) -> None:
        """Stop watching, and end what still runs."""
        if self._task is not None:
            self._task.cancel()
        self._generation.abort()

    async def __aenter__(self) -> Watch:
        return self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    async def _run(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._generation.abort()


class EventStream(Response):
    """Streams a generation's deltas.

    Args:
        generation: A streamed one.
        first: Its first deltas, already taken.
        watch: Watching its client; stopped when the stream ends.
        write: Deltas to the bytes of their events.
        last: The bytes before the last event, such as the usage.
    """

    def __init__(
        self,
        generation: Generation,
        first: list[Delta],
        watch: Watch,
        write: Callable[[Sequence[Delta]], bytes],
        last: Callable[[], bytes],
    ) -> None:
        super().__init__()
        self._generation = generation
        self._first = first
        self._watch = watch
        self._write = write
        self._last = last
        self._is_silent = False
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send the whole stream."""
        self._tick()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._send_events(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._watch.stop()

    async def _send_events(self, send: Send) -> None:
        generation, write = self._generation, self._write
        deltas = self._first
        while True:
            self._is_silent = False
            error = generation.error
            is_last = error is not None or generation.is_over
            body = write([d for d in deltas if d.end is None or d.end.reason.kind != "error"])
            if error is not None:
                body += error_event(error) + DONE
            elif is_last:
                body += self._last() + DONE
            if body or not deltas:
                await send({"type": "http.response.body", "body": body or _PING, "more_body": True})
            if is_last:
                return
            deltas = await generation.deltas()

    def _tick(self) -> None:
        """Wake the stream when nothing was sent since the last tick."""
        if self._is_silent:
            self._generation.nudge()
        self._is_silent = True
        self._timer = asyncio.get_running_loop().call_later(PING_S, self._tick)


def error_event(error: RequestError) -> bytes:
    """Return the event that ends a stream with an error."""
    status = status_of(error.code)
    value = {
        "error": {
            "message": message_of(error),
            "type": type_of(status),
            "param": error.field,
            "code": error.code,
            "retryable": retry_after_of(error) is not None,
        }
    }
    return event(value)


def event(value: Any) -> bytes:
    """Return ``value`` as one event."""
    return b"data: " + encode(value) + b"\n\n"
