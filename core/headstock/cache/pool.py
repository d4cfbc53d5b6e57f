"""Which pages are free. Knows nothing of tokens, prefixes or requests."""

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
        self._free: deque[int] = deque(range(NULL_PAGE + 1, num_pages))
        self._is_taken = bytearray(num_pages)

    @property
    def num_free(self) -> int:
        """Pages that can be taken now."""
        return len(self._free)

    @property
    def num_taken(self) -> int:
        """Pages that are not free."""
        return self.num_total - len(self._free)

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, all or none.

        Returns:
            The page ids, or None when fewer than ``count`` are free.
        """
        if count > len(self._free):
            return None
        pages = [self._free.popleft() for _ in range(count)]
        for page in pages:
            self._is_taken[page] = 1
        return pages

    def give_back(self, pages: Sequence[int]) -> None:
        """Free ``pages``; every one must be taken."""
        for page in pages:
            assert self._is_taken[page], f"page {page} given back, but it was not taken"
            self._is_taken[page] = 0
        self._free.extend(pages)

    def check(self) -> None:
        """Assert that every page is either free or taken, once, and that the null page is neither.

        Costs a pass over all pages: for tests.
        """
        assert not self._is_taken[NULL_PAGE], "the null page was handed out"
        free = list(self._free)
        assert len(set(free)) == len(free), f"a page is free twice: {sorted(free)}"
        for page in free:
            assert not self._is_taken[page], f"page {page} is both free and taken"
        assert len(free) + sum(self._is_taken) == self.num_total, "a page is neither free nor taken"
