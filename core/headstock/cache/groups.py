"""The rule of each kind of page group: what a hit needs, what is given back, what is evicted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from headstock.cache.arena import ArenaPool
from headstock.cache.pool import Pool, Quarantine
from headstock.cache.tree import CachedPage, Node, PrefixTree
from headstock.wire.steps import PageGroup


class Group:
    """Pages of one group: free, held, cached (and idle where no request holds them), quarantined.

    Args:
        index: Its place in the model's groups.
        facts: What the runner says of it.
        pool: Its free pages.
        grain: Tokens of a node.

    Attributes:
        keeps_tokens: Whether its pages hold what belongs to tokens, and a table grows with them.
    """

    keeps_tokens = True

    def __init__(self, index: int, facts: PageGroup, pool: Pool, grain: int) -> None:
        self.index = index
        self.facts = facts
        self.pool = pool
        self.grain = grain
        self.num_evicted = 0
        self._idle: OrderedDict[int, CachedPage] = OrderedDict()
        """By page, the least recently used first; a dict would be slow to take its first from."""
        self._quarantine = Quarantine()
        self._settled = 0
        self._tree: PrefixTree | None = None
        self._slabs = pool if isinstance(pool, ArenaPool) else None
        self._neighbours: list[Group] = []

    @property
    def tree(self) -> PrefixTree:
        """The tree whose nodes hold its pages."""
        assert self._tree is not None
        return self._tree

    def join(self, tree: PrefixTree) -> None:
        """Note the tree, which knows the groups, and so is made after them."""
        self._tree = tree

    def share(self, neighbours: Sequence[Group]) -> None:
        """Note the other groups of its arena: it may have their slabs that hold idle pages only."""
        self._neighbours = list(neighbours)

    @property
    def num_idle(self) -> int:
        """Pages that hold what no live request uses."""
        return len(self._idle)

    @property
    def num_available(self) -> int:
        """Pages that are free or can be made so, once the steps in flight have settled."""
        count = self.pool.num_free + len(self._idle) + self._quarantine.num_pages
        slabs = self._slabs
        if slabs is not None:
            count += (slabs.arena.num_loose - slabs.num_loose_slabs) * slabs.slab_pages
        return count

    # The rule.

    def num_held(self, num_tokens: int, row_tokens: int) -> int:
        """Return how many pages a request of ``num_tokens`` holds at once, at least.

        Args:
            num_tokens: Its length.
            row_tokens: Tokens that one row computes at once, at least.
        """
        raise NotImplementedError

    def num_first(self, count: int) -> int:
        """Return how many pages a request gets first that has ``count`` grains to compute."""
        raise NotImplementedError

    def longest_end(self, path: Sequence[Node], end: int) -> int:
        """Return the longest valid prefix of ``path``, at most ``end`` nodes."""
        raise NotImplementedError

    def needed(self, path: Sequence[Node], end: int) -> list[CachedPage]:
        """Return the pages that a hit of ``end`` nodes reads, in order."""
        raise NotImplementedError

    def first_entry(self, begin: int) -> int:
        """Return the first page table entry that a query at token ``begin``, or later, reads."""
        raise NotImplementedError

    def evict(self, cached: CachedPage) -> None:
        """Free an idle page, and all that would be reached by nothing without it."""
        raise NotImplementedError

    def lost(self, node: Node) -> None:
        """Note that the group's page at ``node`` is gone, and the node perhaps with it."""

    # Holding and letting go.

    def hold(self, pages: Iterable[CachedPage]) -> None:
        """Keep ``pages`` for a request."""
        idle = self._idle
        for cached in pages:
            if cached.users == 0:
                del idle[cached.page]
                if self._slabs is not None:
                    self._slabs.bind(cached.page)
            cached.users += 1

    def let_go(self, pages: Iterable[CachedPage], last_step: int) -> None:
        """Stop holding ``pages``; the first of them is evicted first.

        Args:
            pages: What :meth:`hold` and :meth:`offer` held.
            last_step: Last step that was launched with them.
        """
        idle, index = self._idle, self.index
        for cached in pages:
            assert cached.users > 0, f"page {cached.page} released more often than held"
            cached.users -= 1
            if last_step > cached.last_step:
                cached.last_step = last_step
            if cached.users:
                continue
            node = cached.node
            if node.is_listed and node.pages[index] is cached:
                idle[cached.page] = cached
                if self._slabs is not None:
                    self._slabs.loosen((cached.page,))
            else:
                if node.pages[index] is cached:
                    node.pages[index] = None
                self.free([cached.page], cached.last_step)

    def offer(self, node: Node, page: int, step: int) -> CachedPage | None:
        """Put ``page`` at ``node``; its writer holds it from now on.

        Args:
            node: A listed node.
            page: Holds the node's tokens once ``step`` has run.
            step: Step that writes the last of them.

        Returns:
            The page at its node, held; an idle one gives way. None: requests use another page
            of the same tokens, and this one stays its writer's own; see :meth:`join_twin`.
        """
        known = node.pages[self.index]
        if known is None:
            known = node.pages[self.index] = CachedPage(node, page, step)
            return known
        if known.users:
            return None
        self.hold((known,))
        self.free([known.page], known.last_step)
        known.page, known.written, known.last_step = page, step, 0
        return known

    def join_twin(self, node: Node) -> CachedPage:
        """Hold the page at ``node`` that another request wrote with the same tokens."""
        known = node.pages[self.index]
        assert known is not None, "there is no page to hold"
        self.hold((known,))
        return known

    def exchange(self, cached: CachedPage, page: int, step: int) -> None:
        """Put ``page``, which holds the same, in the place of a page that only its owner holds.

        Args:
            cached: Held by the owner of ``page`` alone.
            page: Its own page of the same tokens.
            step: Step that writes the last of them, or a later one.
        """
        assert cached.users == 1, f"page {cached.page} is in use, it cannot be exchanged"
        self.free([cached.page], cached.last_step)
        cached.page, cached.written = page, step

    # Pages.

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, all or none, evicting the least recently used.

        Returns:
            The page numbers, or None: what is missing is held by requests or by steps in flight.
        """
        short = count - self.pool.num_free
        if short > 0 and not self._make_free(short):
            return None
        return self.pool.take(count)

    def take_some(self, count: int) -> list[int]:
        """Take ``count`` pages, or as many as there are, evicting the least recently used."""
        while self.pool.num_free < count and self._evict_oldest():
            pass
        return self.pool.take(min(count, self.pool.num_free)) or []

    def free(self, pages: list[int], last_step: int) -> None:
        """Take back pages that were held and that nothing finds, once ``last_step`` has settled."""
        if self._slabs is not None:
            self._slabs.loosen(pages)
        self._discard(pages, last_step)

    def _discard(self, pages: list[int], last_step: int) -> None:
        if last_step <= self._settled:
            self.pool.give_back(pages)
        else:
            self._quarantine.put(pages, last_step)

    def lose(self, cached: CachedPage) -> None:
        """Take a page without users off its node, and free it."""
        cached.node.pages[self.index] = None
        del self._idle[cached.page]
        self._discard([cached.page], cached.last_step)

    def settle(self, step: int) -> None:
        """Note that every step up to ``step`` has settled."""
        self._settled = step
        if self._quarantine.num_pages:
            self.pool.give_back(self._quarantine.settle(step))

    def flush(self) -> int:
        """Evict every idle page; returns how many there were."""
        count = len(self._idle)
        while self._idle:
            self.evict(next(iter(self._idle.values())))
        return count

    def check(self, private: Sequence[int]) -> None:
        """Assert that no page is lost and none has two owners. For tests.

        Args:
            private: Every page that live requests hold outside the tree.
        """
        self.pool.check()
        found = self.tree.pages(self.index)
        for cached in found:
            is_idle = self._idle.get(cached.page) is cached
            assert is_idle == (cached.users == 0), f"page {cached.page} is idle wrongly"
        assert len(self._idle) == sum(cached.users == 0 for cached in found)
        owned = sorted([*private, *(cached.page for cached in found)])
        assert len(set(owned)) == len(owned), f"a page has two owners: {owned}"
        accounted = len(owned) + self._quarantine.num_pages
        assert accounted == self.pool.num_taken, f"{self.pool.num_taken - accounted} pages leaked"

    def _make_free(self, count: int) -> bool:
        """Evict until ``count`` more pages are free, or nothing when there are not so many."""
        slabs = self._slabs
        if slabs is not None:
            others = (slabs.arena.num_loose - slabs.num_loose_slabs) * slabs.slab_pages
            if count > len(self._idle) + others:
                return False
            target = self.pool.num_free + count
            while self.pool.num_free < target:
                if not self._evict_oldest():
                    return False
            return True
        if count > len(self._idle):
            return False
        settled = self._settled
        for cached, _ in zip(self._idle.values(), range(count), strict=False):
            if cached.last_step > settled:
                return False
        before = len(self._idle)
        target = self.pool.num_free + count
        while self.pool.num_free < target:
            self.evict(next(iter(self._idle.values())))
        self.num_evicted += before - len(self._idle)
        return True

    def _evict_oldest(self) -> bool:
        """Evict the least recently used page, or else what keeps a slab in another group."""
        oldest = next(iter(self._idle.values()), None)
        if oldest is not None and oldest.last_step <= self._settled:
            self.evict(oldest)
            self.num_evicted += 1
            return True
        return any(neighbour.give_slab() for neighbour in self._neighbours)

    def give_slab(self) -> bool:
        """Evict all pages of a slab that no request uses, so that another group can have it."""
        tried: set[int] = set()
        while (slab := self._next_loose(tried)) is not None:
            tried.add(slab)
            if self._evict_slab(slab):
                return True
        return False

    def _next_loose(self, tried: set[int]) -> int | None:
        """Return the slab of the least recently used page that lies in none of ``tried``.

        Slabs of which requests use a page are passed over, and noted as tried.
        """
        slabs = self._slabs
        assert slabs is not None, "the group has no slabs"
        for page in self._idle:
            slab = page // slabs.slab_pages
            if slab not in tried:
                if slabs.is_loose(slab):
                    return slab
                tried.add(slab)
        return None

    def _evict_slab(self, slab: int) -> bool:
        """Evict the pages of ``slab``, unless steps in flight use them; tell whether it is free."""
        slabs = self._slabs
        assert slabs is not None, "the group has no slabs"
        numbers = range(slab * slabs.slab_pages, (slab + 1) * slabs.slab_pages)
        pages = [self._idle[page] for page in numbers if page in self._idle]
        if any(cached.last_step > self._settled for cached in pages):
            return False
        num_free = slabs.arena.num_free
        for cached in pages:
            if self._idle.get(cached.page) is cached:
                self.evict(cached)
                self.num_evicted += 1
        return slabs.arena.num_free > num_free


class FullGroup(Group):
    """Every token of a request is kept.

    Who holds a page of a node holds those before it, and lets go of the deepest first. So the
    least recently used idle page stands at a node that nothing follows.
    """

    def num_held(self, num_tokens: int, row_tokens: int) -> int:
        return -(-num_tokens // self.grain)

    def num_first(self, count: int) -> int:
        return count

    def longest_end(self, path: Sequence[Node], end: int) -> int:
        # A node without its full page is unlisted.
        return end

    def needed(self, path: Sequence[Node], end: int) -> list[CachedPage]:
        index = self.index
        return list(filter(None, [node.pages[index] for node in path[:end]]))

    def first_entry(self, begin: int) -> int:
        return 0

    def evict(self, cached: CachedPage) -> None:
        self.tree.drop(cached.node)


class WindowGroup(Group):
    """The last tokens of a request are kept.

    A cached prefix is valid where all the tokens are there that a request reads when it goes on
    from its end.
    """

    def __init__(self, index: int, facts: PageGroup, pool: Pool, grain: int) -> None:
        super().__init__(index, facts, pool, grain)
        self._reach = -(-(facts.window - 1) // grain)
        """Pages before its own that a row reads."""

    def num_held(self, num_tokens: int, row_tokens: int) -> int:
        # The window may begin and the row end within a page.
        window = -(-(self.facts.window + row_tokens) // self.grain) + 1
        return min(-(-num_tokens // self.grain), window)

    def num_first(self, count: int) -> int:
        return min(count, -(-self.facts.window // self.grain))

    def longest_end(self, path: Sequence[Node], end: int) -> int:
        index = self.index
        place = end
        while end:
            first = self.first_entry(end * self.grain)
            # Pages from ``place`` on are known to be there.
            while place > first and path[place - 1].pages[index] is not None:
                place -= 1
            if place <= first:
                return end
            # No end that reads this tombstone is valid.
            place -= 1
            end = place
        return 0

    def needed(self, path: Sequence[Node], end: int) -> list[CachedPage]:
        index = self.index
        nodes = path[self.first_entry(end * self.grain) : end]
        return [cached for node in nodes if (cached := node.pages[index]) is not None]

    def first_entry(self, begin: int) -> int:
        return max(0, begin - self.facts.window + 1) // self.grain

    def evict(self, cached: CachedPage) -> None:
        node = cached.node
        self.lose(cached)
        self.lost(node)
        self.tree.forget_empty(node)

    def lost(self, node: Node) -> None:
        """Free what no end can be reached by any more.

        A page is read by rows that go on from an end at most a window after it, and only when all
        pages between are there. So pages in a row are of use when they are a window together, or
        when nothing comes before them.
        """
        index, reach = self.index, self._reach
        for child in list(node.children()):
            if child.pages[index] is not None:
                self._prune(child)
        top = node.parent
        if top is None or top.pages[index] is None:
            return
        length = 1
        while length < reach and top.parent is not None and top.parent.pages[index] is not None:
            top = top.parent
            length += 1
        if length < reach and top.parent is not None:
            self._prune(top)

    def _prune(self, top: Node) -> None:
        """Free the idle pages from ``top`` on that are not in a row of ``reach`` from there."""
        index, last = self.index, self._reach - 1
        found: list[tuple[Node, int, int]] = [(top, 0, -1)]
        place = 0
        while place < len(found):
            node, length, _ = found[place]
            if length < last:
                found += [
                    (child, length + 1, place)
                    for child in node.children()
                    if child.pages[index] is not None
                ]
            place += 1
        is_useful = [False] * len(found)
        for place in range(len(found) - 1, -1, -1):
            node, length, parent = found[place]
            cached = node.pages[index]
            assert cached is not None
            if is_useful[place] or length >= last or cached.users:
                if parent >= 0:
                    is_useful[parent] = True
            else:
                self.lose(cached)
                self.tree.forget_empty(node)


class StateGroup(Group):
    """A request's whole state is one page; cached are its copies at some nodes, the checkpoints."""

    keeps_tokens = False

    def num_held(self, num_tokens: int, row_tokens: int) -> int:
        return 1

    def num_first(self, count: int) -> int:
        return 1

    def longest_end(self, path: Sequence[Node], end: int) -> int:
        index = self.index
        while end and path[end - 1].pages[index] is None:
            end -= 1
        return end

    def needed(self, path: Sequence[Node], end: int) -> list[CachedPage]:
        cached = path[end - 1].pages[self.index] if end else None
        return [] if cached is None else [cached]

    def first_entry(self, begin: int) -> int:
        return 0

    def evict(self, cached: CachedPage) -> None:
        node = cached.node
        self.lose(cached)
        self.tree.forget_empty(node)
