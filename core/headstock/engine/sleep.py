"""A sleeping engine: its pages are given back to the system, and made again when it wakes."""

from __future__ import annotations

from typing import Protocol

from headstock.errors import HeadstockError
from headstock.wire.messages import Sleep, UpkeepReply, Wake

END_IT = "End the server, and start it again."


class Pages(Protocol):
    """The memory of all pages; ``runner.TorchRunner`` is one."""

    def release_pages(self) -> int:
        """Give it back to the system; returns the bytes. No step is in flight."""
        ...

    def restore_pages(self) -> None:
        """Make the pages again.

        Raises:
            HeadstockError: There is no room now; they stay released.
        """
        ...


class SleepDesk:
    """Puts an engine to sleep between two steps, and wakes it.

    Args:
        pages: Their memory; or why it cannot be given back.

    Attributes:
        is_held: Whether steps are held back, since it sleeps or is about to.
        is_pending: Whether it is about to: it sleeps once nothing is in flight.
    """

    def __init__(self, pages: Pages | str) -> None:
        self._why_not, self._pages = ("", pages) if not isinstance(pages, str) else (pages, None)
        self._calls: list[int] = []
        self.is_held = self.is_pending = False

    def begin(self, message: Sleep) -> UpkeepReply | None:
        """Take an order to sleep; returns the answer, or None: it comes once it sleeps."""
        if self._pages is None:
            return UpkeepReply(call=message.call, problem=self._why_not, remedy=END_IT)
        if self.is_held and not self.is_pending:
            return UpkeepReply(call=message.call)
        self._calls.append(message.call)
        self.is_held = self.is_pending = True
        return None

    def fall_asleep(self) -> list[UpkeepReply]:
        """Release the pages; nothing is in flight and no prefix is cached."""
        assert self._pages is not None, "the pages cannot be released"
        released = self._pages.release_pages()
        self.is_pending = False
        calls, self._calls = self._calls, []
        return [UpkeepReply(call=call, count=released) for call in calls]

    def wake(self, message: Wake) -> list[UpkeepReply]:
        """Make the pages again; returns the answers. One that does not sleep stays awake."""
        replies: list[UpkeepReply] = []
        if self.is_pending:
            woken = "The engine was woken before it slept."
            replies = [UpkeepReply(call=call, problem=woken) for call in self._calls]
            self._calls = []
        elif self.is_held:
            assert self._pages is not None, "the pages were never released"
            try:
                self._pages.restore_pages()
            except HeadstockError as error:
                refusal = UpkeepReply(call=message.call, problem=error.problem, remedy=error.remedy)
                return [refusal]
        self.is_held = self.is_pending = False
        return [*replies, UpkeepReply(call=message.call)]
