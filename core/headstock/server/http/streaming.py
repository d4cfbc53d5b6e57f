"""Server-sent events without a framework in the way: one write for all that a step brought."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.completion import Delta
from headstock.server.errors import message_of, retry_after_of, status_of, type_of
from headstock.server.generation import Generation
from headstock.server.http.protocol import CONNECTION, BoundedProtocol
from headstock.server.protocols.events import event

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

PING_S = 15.0
"""A comment is sent after so long a silence, so that proxies keep the connection. Seconds."""
DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class Writer:
    """How a protocol writes a stream.

    Attributes:
        write: Deltas to the bytes of their events.
        last: The bytes after the last delta, such as the usage.
        fail: The bytes that end a stream with an error.
        content_type: Of the stream.
        ping: Sent after a long silence; b"": nothing can be.
        is_cumulative: Whether an event repeats what earlier events said; there is one for each
            delta.
    """

    write: Callable[[Sequence[Delta]], bytes]
    last: Callable[[], bytes]
    fail: Callable[[RequestError], bytes]
    content_type: bytes = b"text/event-stream; charset=utf-8"
    ping: bytes = b": ping\n\n"
    is_cumulative: bool = False


class Watch:
    """Aborts a generation when its client goes away; a context for as long as it matters.

    The client's connection calls it. Where there is none, as for what the server asks itself, a
    task waits instead.

    Args:
        request: Whose client is watched; its body has been read.
        generation: What it waits for.
    """

    def __init__(self, request: Request, generation: Generation) -> None:
        self._receive = request.receive
        self._connection: BoundedProtocol | None = request.scope.get(CONNECTION)
        self._generation = generation
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Watch:
        """Begin to watch."""
        if self._connection is None:
            self._task = asyncio.create_task(self._run())
        else:
            self._connection.watch(self._left)
        return self

    def stop(self) -> None:
        """Stop watching, and end what still runs."""
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.unwatch(self._left)
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
        self._left()

    def _left(self) -> None:
        self._generation.abort()


class EventStream(Response):
    """Streams a generation's deltas, straight to the connection that its scope names.

    Args:
        generation: A streamed one.
        first: Its first deltas, already taken.
        watch: Watching its client; stopped when the stream ends.
        writer: How its protocol writes.
        lead: What is sent before them.
    """

    def __init__(
        self,
        generation: Generation,
        first: list[Delta],
        watch: Watch,
        writer: Writer,
        lead: bytes = b"",
    ) -> None:
        super().__init__()
        self._generation = generation
        self._first = first
        self._watch = watch
        self._writer = writer
        self._lead = lead
        self._is_silent = False
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send the whole stream."""
        self._connection: BoundedProtocol = scope[CONNECTION]
        self._put = self._connection.stream_writer(scope)
        self._over = asyncio.get_running_loop().create_future()
        self._tick()
        try:
            headers = [(b"content-type", self._writer.content_type), *_HEADERS]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            if self._lead:
                self._put(self._lead)
            self._write_events(self._first)
            self._generation.listen(self._push)
            self._connection.on_writable = self._push
            self._push()
            await self._over
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._generation.listen(None)
            self._connection.on_writable = None
            if self._timer is not None:
                self._timer.cancel()
            self._watch.stop()

    def _push(self) -> None:
        """Write what there is, unless the client is behind: then it waits, and is joined."""
        if self._connection.is_full or self._over.done():
            return
        try:
            self._write_events(self._generation.take())
        except Exception as error:  # noqa: BLE001 - the boundary of a stream: it alone ends
            self._over.set_exception(error)

    def _write_events(self, deltas: Sequence[Delta]) -> None:
        generation = self._generation
        error, is_over = generation.error, generation.is_over
        if error is not None:
            deltas = [d for d in deltas if d.end is None or d.end.reason.kind != "error"]
        body = self._writer.write(deltas)
        if error is not None:
            body += self._writer.fail(error)
        elif is_over:
            body += self._writer.last()
        if body:
            self._is_silent = False
            self._put(body)
        if error is not None or is_over:
            self._over.set_result(None)

    def _tick(self) -> None:
        """Say something when nothing was written since the last tick."""
        if self._is_silent and self._writer.ping and not self._connection.is_full:
            self._put(self._writer.ping)
        self._is_silent = True
        self._timer = asyncio.get_running_loop().call_later(PING_S, self._tick)


def fail_openai(error: RequestError) -> bytes:
    """Return the end of a stream of ``data:`` lines that failed."""
    return error_event(error) + DONE


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
