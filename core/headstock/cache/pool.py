"""Which pages are free, or will be. Knows nothing of tokens, prefixes or requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from headstock.wire.steps import NULL_PAGE


class Pool(Protocol):
    """Pages of one group that hold nothing; its memory may be shared with other groups."""

    @property
    def num_total(self) -> int:
        """Pages that requests can have, the null page not among them."""
        ...

    @property
    def num_free(self) -> int:
        """Pages that can be taken now."""
        ...

    @property
    def num_taken(self) -> int:
        """Pages that are not free."""
        ...

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, all or none."""
        ...

    def give_back(self, pages: Sequence[int]) -> None:
        """Free ``pages``; every one must be taken."""
        ...

    def check(self) -> None:
        """Assert that every page is either free or taken, once. For tests."""
        ...


class PagePool:
    """Hands out pages of one group that has memory of its own.

    The null page is never handed out: finished and padding rows write there.

    Args:
        num_pages: Pages there are, the null page included.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_total = num_pages - 1
        self.num_free = num_pages - 1
        self._free = list(range(NULL_PAGE + 1, num_pages))
        self._begin = 0
        """Entries of ``_free`` before it are not free any more."""
        self._taken: set[int] = set()

    @property
    def num_taken(self) -> int:
        """Pages that are not free."""
        return self.num_total - self.num_free

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, all or none.

        Returns:
            The page ids, or None when fewer than ``count`` are free.
        """
        if count > self.num_free:
            return None
        self.num_free -= count
        begin = self._begin
        self._begin = end = begin + count
        pages = self._free[begin:end]
        self._taken.update(pages)
        if end > 4096 and end > self.num_free:
            del self._free[:end]
            self._begin = 0
        return pages

    def give_back(self, pages: Sequence[int]) -> None:
        """Free ``pages``; every one must be taken."""
        taken = self._taken
        assert taken.issuperset(pages), f"given back, but not taken: {set(pages) - taken}"
        taken.difference_update(pages)
        assert len(taken) == self.num_total - self.num_free - len(pages), "a page twice"
        self._free.extend(pages)
        self.num_free += len(pages)

    def check(self) -> None:
        """Assert that every page is either free or taken, once, and that the null page is neither.

        Costs a pass over all pages: for tests.
        """
        taken = self._taken
        assert NULL_PAGE not in taken, "the null page was handed out"
        free = self._free[self._begin :]
        assert len(free) == self.num_free
        assert len(set(free)) == len(free), f"a page is free twice: {sorted(free)}"
        assert taken.isdisjoint(free), f"pages are both free and taken: {taken.intersection(free)}"
        assert len(free) + len(taken) == self.num_total, "a page is neither free nor taken"


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
