"""HTTP/1.1 with limits on headers: count, bytes, and the time they may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any, cast

from headstock.server.http.flow import Flow, Pipeline, Signal
from headstock.server.http.offers import OfferIgnoring

MAX_HEADERS = 100
MAX_HEADER_BYTES = 64 * 1024
MAX_URL_BYTES = 16 * 1024
HEADER_DEADLINE_S = 10.0
"""A connection that has not sent all headers of a request it began by then is closed. Seconds."""
LINGER_S = 1.0
"""How long a refused client may go on sending. Seconds."""
CONNECTION = "headstock.connection"
"""Where a request's scope has its connection."""
CYCLE = "headstock.cycle"
"""Where it has what uvicorn knows of its answer."""
_TOO_LARGE = f"The headers are larger than {MAX_HEADER_BYTES} bytes, or more than {MAX_HEADERS}."
_LONG = f"The URL is longer than {MAX_URL_BYTES} bytes."


def _answer(status: str, code: str, message: str) -> bytes:
    """Return a whole answer in the envelope of all errors, after which the connection closes."""
    body = (
        f'{{"error":{{"message":"{message}","type":"invalid_request_error","param":null,'
        f'"code":"{code}"}}}}'
    )
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return f"{head}{body}".encode()


class BoundedProtocol(OfferIgnoring):
    """uvicorn's protocol, which by itself takes headers without end."""

    __slots__ = (
        "_deadline", "_header_bytes", "_is_refused", "_on_gone", "_url_bytes", "on_writable",
    )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = cast("Any", Pipeline())
        self._header_bytes = self._url_bytes = 0
        self._is_refused = False
        self._deadline: asyncio.TimerHandle | None = None
        self.on_writable: Callable[[], None] | None = None
        """Called when the client has caught up."""
        self._on_gone: Callable[[], None] | None = None

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call ``on_gone`` when the client goes away: soon, if it is gone already.

        One request of a connection is served at a time, so there is one to notify.
        """
        self._on_gone = on_gone
        self.flow.resume_reading()  # who does not read does not see that it is gone
        if self.transport.is_closing():
            self.loop.call_soon(self._tell_gone)

    def unwatch(self, on_gone: Callable[[], None]) -> None:
        """Call ``on_gone`` no more."""
        if self._on_gone == on_gone:
            self._on_gone = None

    def _tell_gone(self) -> None:
        on_gone, self._on_gone = self._on_gone, None
        if on_gone is not None:
            on_gone()

    @property
    def is_full(self) -> bool:
        """Whether the client reads more slowly than is written."""
        return self.flow.write_paused

    def write_chunk(self, body: bytes) -> None:
        """Write ``body`` as a chunk of an answer whose head was sent without a length.

        What a step brings many streams is written in one turn of the event loop, without the
        coroutines that a chunk otherwise passes: those cost more than the writing.
        """
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(body), body))

    def stream_writer(self, scope: MutableMapping[str, Any]) -> Callable[[bytes], None]:
        """Return what writes parts of the answer to ``scope``, whose head is still to be sent.

        A client of HTTP/1.0 knows no chunks (RFC 9112, section 6.1): it reads until the end.
        """
        if scope["http_version"] == "1.1":
            return self.write_chunk
        scope[CYCLE].chunked_encoding = False
        return self.write_raw

    def write_raw(self, body: bytes) -> None:
        """Write ``body`` as a part of an answer that the end of the connection ends."""
        if not self.transport.is_closing():
            self.transport.write(body)

    def resume_writing(self) -> None:
        """Tell who writes that the client has caught up."""
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock for the first headers."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)
        self._tell_gone()

    def data_received(self, data: bytes) -> None:
        """Parse, unless the connection has been refused."""
        if self._is_refused:
            return
        super().data_received(data)
        if self._is_between:  # whatever came begins a request, or is noise: uvicorn's clock stopped
            self._start_clock()

    def on_message_begin(self) -> None:
        """Count anew."""
        self._header_bytes = self._url_bytes = 0
        self._start_clock()
        super().on_message_begin()
        self.scope[CONNECTION] = self  # type: ignore[literal-required]

    def on_url(self, url: bytes) -> None:
        """Take the request line."""
        self._url_bytes += len(url)
        if self._url_bytes > MAX_URL_BYTES:
            self.refuse(_answer("414 URI Too Long", "uri_too_long", _LONG))
        self._count(len(url))
        if not self._is_refused:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header, while there are not too many."""
        self._count(len(name) + len(value) + 4)
        if self._is_refused:
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._refuse()

    def on_headers_complete(self) -> None:
        """Serve the request."""
        self._stop_clock()
        if self._is_refused:
            return
        super().on_headers_complete()
        if not self._is_offered:  # its task has not begun
            self.cycle.message_event = cast("Any", Signal())
            self.scope[CYCLE] = self.cycle  # type: ignore[literal-required]

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of the body."""
        if not self._is_refused:
            super().on_message_complete()

    def _count(self, num_bytes: int) -> None:
        self._header_bytes += num_bytes
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse()

    @property
    def is_refused(self) -> bool:
        """Whether nothing that still comes is read."""
        return self._is_refused

    @property
    def has_clock(self) -> bool:
        """Whether headers are waited for."""
        return self._deadline is not None

    def refuse(self, answer: bytes) -> None:
        """Send ``answer``, a whole one, and close.

        What the client still sends is taken and dropped for a moment: closed at once, the
        connection would be reset, and the answer with it.
        """
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_clock()
        self.transport.write(answer)
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, and close."""
        self.refuse(_answer("400 Bad Request", "invalid_http", msg))

    def _refuse(self) -> None:
        status = "431 Request Header Fields Too Large"
        self.refuse(_answer(status, "headers_too_large", _TOO_LARGE))

    @property
    def _is_between(self) -> bool:
        """Whether no request is being served."""
        # None before the first request, which uvicorn's annotation leaves out.
        cycle = cast("Any", self.cycle)
        return cycle is None or cycle.response_complete

    def _start_clock(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEADER_DEADLINE_S, self._close_slow)

    def _close_slow(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        if self._is_between:
            self.transport.close()
        else:  # the request before is still being answered
            self._start_clock()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
