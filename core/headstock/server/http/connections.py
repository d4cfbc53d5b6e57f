"""How many connections there are, and when one whose client does not read is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, cast

from headstock.server.http.gate import OPEN_PATHS
from headstock.server.http.protocol import BoundedProtocol

PROBE_CONNECTIONS = 16
"""Connections past the limit that are let in, for probes only: they get one answer each."""
WRITE_DEADLINE_S = 30.0
"""A client that takes nothing of what waits for it for so long is cut off. Seconds."""
SWEEP_S = 5.0
"""How often connections are looked at. Seconds."""
_FULL = (
    b'{"error":{"message":"The server has as many connections as it takes.",'
    b'"type":"server_error","param":null,"code":"too_many_connections"}}'
)
_FULL_ANSWER = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 2\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b"
) % (len(_FULL), _FULL)


class CountedProtocol(BoundedProtocol):
    """A connection among a bounded number of them.

    Past the limit an idle connection makes room for a new one. Where none is idle, a new one is
    answered if it is a probe, and refused otherwise.

    Args:
        args: uvicorn's.
        max_connections: How many there may be, beside those of probes.
        kwargs: uvicorn's.
    """

    __slots__ = ("_is_spare", "_max_connections", "_moved_s", "_num_written", "_taken")

    def __init__(self, *args: Any, max_connections: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections
        self._is_spare = False
        self._num_written = 0
        self._taken = 0
        self._moved_s = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether it has served a request, and has not begun to send another."""
        cycle = cast("Any", self.cycle)
        return cycle is not None and cycle.response_complete and not self.has_clock

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and find a place for it."""
        super().connection_made(transport)
        self._moved_s = self.loop.time()
        over = len(self.connections) - self._max_connections
        if over > 0 and not self._make_room():
            self._is_spare = True
            if over > PROBE_CONNECTIONS:
                self._turn_away()

    def on_headers_complete(self) -> None:
        """Serve the request, unless the connection is past the limit and this is no probe."""
        if not self._is_spare or self.is_refused:
            super().on_headers_complete()
            return
        if self.url.partition(b"?")[0].decode("latin-1") not in OPEN_PATHS:
            self._turn_away()
            return
        super().on_headers_complete()
        self.cycle.keep_alive = False

    def write_chunk(self, body: bytes) -> None:
        """Write a part of an answer; see :meth:`BoundedProtocol.write_chunk`."""
        self._num_written += len(body)
        super().write_chunk(body)

    def check_progress(self, now_s: float) -> None:
        """Cut off a client that takes nothing any more.

        Progress is what was written less what still waits; what is not written by chunks only
        makes it jump, which counts as progress too.
        """
        waiting = self.transport.get_write_buffer_size()
        taken = self._num_written - waiting
        if waiting == 0 or taken != self._taken:
            self._taken, self._moved_s = taken, now_s
        elif now_s - self._moved_s > WRITE_DEADLINE_S:
            self.transport.abort()

    def _make_room(self) -> bool:
        """Close an idle connection; tell whether there was one."""
        for other in cast("Iterable[CountedProtocol]", self.connections):
            if other is not self and other.is_idle and not other.transport.is_closing():
                other.transport.close()
                return True
        return False

    def _turn_away(self) -> None:
        self.refuse(_FULL_ANSWER)


async def sweep(connections: set[Any]) -> None:
    """Look at ``connections`` from time to time, until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        await asyncio.sleep(SWEEP_S)
        for connection in cast("list[CountedProtocol]", list(connections)):
            connection.check_progress(clock())
