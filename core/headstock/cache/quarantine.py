"""Pages without an owner that a step in flight may still touch."""

from __future__ import annotations

from collections import deque


class Quarantine:
    """Holds released pages until the last step launched with them has settled."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, list[int]]] = deque()
        self.num_pages = 0

    def put(self, pages: list[int], last_step: int) -> None:
        """Hold ``pages`` until ``last_step`` has settled."""
        self._waiting.append((last_step, pages))
        self.num_pages += len(pages)

    def settle(self, step: int) -> list[int]:
        """Return the pages that are safe now that every step up to ``step`` has settled.

        A later entry is not looked at before an earlier one is safe: it waits a step too long
        at worst.
        """
        safe: list[int] = []
        while self._waiting and self._waiting[0][0] <= step:
            safe += self._waiting.popleft()[1]
        self.num_pages -= len(safe)
        return safe
