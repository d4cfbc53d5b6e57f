"""Memory that several groups share: slabs go to the group that needs them, and come back."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from headstock.cache.pool import PagePool, Pool
from headstock.wire.steps import PageGroup


class Arena:
    """Slabs that hold nothing. Slab 0 holds the null pages and is never handed out.

    Args:
        num_slabs: Slabs there are, the first included.
    """

    def __init__(self, num_slabs: int) -> None:
        self.num_total = num_slabs - 1
        self.num_loose = 0
        """Slabs of some group in which no request holds a page: they could be had."""
        self._free = list(range(num_slabs - 1, 0, -1))

    @property
    def num_free(self) -> int:
        """Slabs that belong to no group."""
        return len(self._free)

    def take(self) -> int:
        """Take one of the free slabs."""
        return self._free.pop()

    def give_back(self, slab: int) -> None:
        """Free ``slab``."""
        self._free.append(slab)


class ArenaPool:
    """Hands out pages of one group that lives in slabs of an arena.

    A taken page is *busy* while a request holds it, and *loose* otherwise: it is idle in the tree,
    or waits for steps in flight. A slab whose pages are all free goes back at once.

    Args:
        arena: Where slabs come from.
        slab_pages: Pages of the group that a slab holds.
    """

    def __init__(self, arena: Arena, slab_pages: int) -> None:
        self.arena = arena
        self.slab_pages = slab_pages
        self.num_loose_slabs = 0
        self._free: OrderedDict[int, list[int]] = OrderedDict()
        """Free pages of each own slab that has some, the slab that has had some longest first."""
        self._num_own_free = 0
        self._busy: dict[int, int] = {}
        """Busy pages of each own slab."""

    @property
    def num_total(self) -> int:
        """Pages there are when the group has all slabs."""
        return self.arena.num_total * self.slab_pages

    @property
    def num_free(self) -> int:
        """Pages that can be taken now, those of free slabs included."""
        return self._num_own_free + self.arena.num_free * self.slab_pages

    @property
    def num_taken(self) -> int:
        """Pages that are busy or loose."""
        return len(self._busy) * self.slab_pages - self._num_own_free

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, all or none; those of slabs that are in use already first."""
        if count > self.num_free:
            return None
        pages: list[int] = []
        while len(pages) < count:
            if not self._free:
                self._take_slab()
            slab, free = next(iter(self._free.items()))
            part = free[: count - len(pages)]
            del free[: len(part)]
            if not free:
                del self._free[slab]
            self._num_own_free -= len(part)
            if not self._busy[slab] and part:
                self._count_loose(-1)
            self._busy[slab] += len(part)
            pages += part
        return pages

    def give_back(self, pages: Sequence[int]) -> None:
        """Free ``pages``; every one must be loose."""
        for page in pages:
            slab = page // self.slab_pages
            assert slab in self._busy, f"page {page} given back, but its slab is another group's"
            free = self._free.setdefault(slab, [])
            assert page not in free, f"page {page} given back, but it was not taken"
            free.append(page)
            self._num_own_free += 1
            if len(free) == self.slab_pages:
                self._give_back_slab(slab)

    def loosen(self, pages: Sequence[int]) -> None:
        """Note that no request holds ``pages`` any more."""
        for page in pages:
            slab = page // self.slab_pages
            self._busy[slab] -= 1
            assert self._busy[slab] >= 0, f"page {page} is released more often than held"
            if not self._busy[slab]:
                self._count_loose(1)

    def bind(self, page: int) -> None:
        """Note that a request holds ``page``, which was loose."""
        slab = page // self.slab_pages
        if not self._busy[slab]:
            self._count_loose(-1)
        self._busy[slab] += 1

    def is_loose(self, slab: int) -> bool:
        """Return whether ``slab`` is the group's and no request holds a page of it."""
        return self._busy.get(slab) == 0

    def check(self) -> None:
        """Assert that counts and slabs agree. For tests."""
        free = {slab: set(pages) for slab, pages in self._free.items()}
        assert all(free.values()), "a full slab is listed as one with free pages"
        assert sum(map(len, free.values())) == self._num_own_free
        for slab, pages in free.items():
            assert len(pages) == len(self._free[slab]), "a page is free twice"
            assert all(page // self.slab_pages == slab for page in pages)
            assert len(pages) < self.slab_pages, "an empty slab was kept"
        assert 0 not in self._busy, "the slab of the null pages was handed out"
        assert self.num_loose_slabs == sum(count == 0 for count in self._busy.values())
        for slab, busy in self._busy.items():
            assert 0 <= busy <= self.slab_pages - len(free.get(slab, ()))

    def _take_slab(self) -> None:
        slab = self.arena.take()
        begin = slab * self.slab_pages
        self._free[slab] = list(range(begin, begin + self.slab_pages))
        self._num_own_free += self.slab_pages
        self._busy[slab] = 0
        self._count_loose(1)

    def _give_back_slab(self, slab: int) -> None:
        assert self._busy.pop(slab) == 0, f"slab {slab} is free, but a request holds a page of it"
        self._count_loose(-1)
        del self._free[slab]
        self._num_own_free -= self.slab_pages
        self.arena.give_back(slab)

    def _count_loose(self, count: int) -> None:
        self.num_loose_slabs += count
        self.arena.num_loose += count


def arena_of(groups: Sequence[PageGroup]) -> Arena | None:
    """Return the arena that some of ``groups`` share; None: none do."""
    sizes = [facts.num_pages // facts.slab_pages for facts in groups if facts.slab_pages]
    return Arena(min(sizes)) if sizes else None


def pool_of(facts: PageGroup, arena: Arena | None) -> Pool:
    """Return the free pages of a group."""
    if arena is not None and facts.slab_pages:
        return ArenaPool(arena, facts.slab_pages)
    return PagePool(facts.num_pages)
