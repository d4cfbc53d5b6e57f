"""All completions of one call, as its route waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from headstock.errors import RequestError
from headstock.server.completion import Completion, Delta
from headstock.server.errors import error_of

MAX_BACKLOG = 4096
"""Deltas that a client may be behind before its request ends."""


COALESCE_FROM = 32
"""Deltas that wait together are joined from so many on: the client is behind."""


def merge(deltas: Sequence[Delta]) -> list[Delta]:
    """Return one delta a completion that says what ``deltas`` say of it."""
    last: dict[int, Delta] = {}
    texts: dict[int, list[str]] = {}
    for delta in deltas:
        last[delta.index] = delta
        texts.setdefault(delta.index, []).append(delta.text)
    return [
        Delta(index, "".join(texts[index]), delta.num_outputs, delta.end)
        for index, delta in last.items()
    ]


class Generation:
    """The completions of one call: ``n`` for each prompt, in the prompts' order.

    Args:
        completions: All of them; more never come.
        is_streamed: Whether each delta is waited for, or the end alone.
        abort: Called when the client has left; ends the completions that still run, in the engine
            too.
        merges: Whether deltas may be joined for a client that is behind.
    """

    def __init__(
        self,
        completions: Sequence[Completion],
        *,
        is_streamed: bool,
        abort: Callable[[Generation], None],
        merges: bool = True,
    ) -> None:
        self.completions = completions
        self.is_streamed = is_streamed
        self._abort = abort
        self._merges = merges
        self._is_detached = False
        self._pending: list[Delta] = []
        self._num_open = len(completions)
        self._waiter: asyncio.Future[None] | None = None
        self._listener: Callable[[], None] | None = None
        self.will_wake = False
        """Whether it is among those that its front door will wake."""
        self.error: RequestError | None = None
        """What one of them failed with, the first time."""

    @property
    def is_over(self) -> bool:
        """Whether every completion has ended and every delta was taken."""
        return self._num_open == 0 and not self._pending

    @property
    def is_behind(self) -> bool:
        """Whether the client takes deltas more slowly than they come, by too much."""
        return self.is_streamed and len(self._pending) > MAX_BACKLOG

    def put(self, deltas: Sequence[Delta]) -> None:
        """Add what happened; :meth:`wake` must follow."""
        if self._is_detached:
            return
        for delta in deltas:
            if delta.end is not None:
                self._num_open -= 1
                if delta.end.reason.kind == "error" and self.error is None:
                    self.error = error_of(delta.end.reason)
        if self.is_streamed:
            self._pending += deltas

    def wake(self) -> None:
        """Hand what was put to the reader."""
        if not (self.is_streamed or self._num_open == 0 or self.error is not None):
            return
        if self._listener is not None:
            self._listener()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def deltas(self) -> list[Delta]:
        """Wait for deltas and return all that are there; none when it is over."""
        if not self._pending and self._num_open:
            await self._wait()
        return self.take()

    def take(self) -> list[Delta]:
        """Return the deltas that are there."""
        deltas, self._pending = self._pending, []
        return merge(deltas) if self._merges and len(deltas) > COALESCE_FROM else deltas

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call ``listener`` when something was put: no task is woken for a token.

        Args:
            listener: Takes the deltas, or lets them wait; raises nothing. None: no more calls.
        """
        self._listener = listener

    async def finished(self) -> None:
        """Wait until all have ended.

        Raises:
            RequestError: One could not be served; the others were ended.
        """
        while self._num_open and self.error is None:
            await self._wait()
        if self.error is not None:
            self.abort()
            raise self.error

    async def ended(self) -> AsyncIterator[tuple[int, Completion]]:
        """Yield each completion, with its index, once it has ended; of a streamed call.

        What is done with one is done while the engine works on the others.

        Raises:
            RequestError: One could not be served; the others were ended.
        """
        while not self.is_over and self.error is None:
            for delta in await self.deltas():
                if delta.end is not None and self.error is None:
                    yield delta.index, self.completions[delta.index]
        if self.error is not None:
            self.abort()
            raise self.error

    def detach(self, error: RequestError) -> None:
        """Stop reading, with ``error`` for the reader: the call continues without it."""
        self._is_detached = True
        self._pending, self._num_open = [], 0
        if self.error is None:
            self.error = error
        self.wake()

    def abort(self) -> None:
        """End the completions that still run: the client has left."""
        if self._num_open:
            self._abort(self)

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter
