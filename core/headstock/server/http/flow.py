"""Flow control of a connection: uvicorn's, without the queues that one request never fills.

One task serves a request, so one waits at most: for its body, or for the client to read. An
``asyncio.Event`` and a ``deque`` hold a block for dozens from the start, which is more than all
else that some requests hold while they wait.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.flow_control import FlowControl


class Signal:
    """An event that one task at a time waits for."""

    __slots__ = ("_is_raised", "_waiter")

    def __init__(self) -> None:
        self._is_raised = False
        self._waiter: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_raised

    def set(self) -> None:
        """Set it, and wake who waits."""
        self._is_raised = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Unset it."""
        self._is_raised = False

    async def wait(self) -> bool:
        """Wait until it is set; returns True, as an event does."""
        while not self._is_raised:
            assert self._waiter is None or self._waiter.done(), "two wait for one signal"
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return True


class Flow(FlowControl):
    """uvicorn's flow control, with a signal in place of its event."""

    def __init__(self, transport: asyncio.Transport) -> None:  # the base's makes an event
        self._transport = transport
        self.read_paused = False
        self.write_paused = False
        writable = Signal()
        writable.set()
        self._is_writable_event = cast("Any", writable)


class Pipeline(list[Any]):
    """Requests that were sent before the answer to the one before them: seldom any."""

    def appendleft(self, item: Any) -> None:
        """Put ``item`` at the end that is taken last."""
        self.insert(0, item)
