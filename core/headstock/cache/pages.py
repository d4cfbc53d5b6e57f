"""Pages from the pools to the tree and back: the one door through which requests get memory."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.cache.arena import arena_of, pool_of
from headstock.cache.groups import FullGroup, Group, StateGroup, WindowGroup
from headstock.cache.tables import PageTable, StateTable, Tables
from headstock.cache.tree import CachedPage, Hit, Node, PrefixTree
from headstock.errors import ConfigError, UnsupportedError
from headstock.wire.steps import NULL_PAGE, STATE_OUT, PageGroup

KINDS: dict[str, type[Group]] = {"full": FullGroup, "window": WindowGroup, "state": StateGroup}
STATE_GRAIN = 64
"""Tokens of a node where all that layers keep is a state."""


class PageCache:
    """The pages of a model's groups of layers: free, held, cached, or in quarantine.

    Args:
        groups: The runner's page groups.
        is_sharing: Whether equal prefixes share pages.
        row_tokens: Tokens that a row from the device computes, at most.

    Raises:
        UnsupportedError: A group's kind is unknown, or pages hold different numbers of tokens.
        ConfigError: The pages do not hold one token.
    """

    def __init__(
        self, groups: Sequence[PageGroup], *, is_sharing: bool = True, row_tokens: int = 1
    ) -> None:
        self.page_tokens = grain = _grain(groups)
        self.is_sharing = is_sharing
        self.arena = arena_of(groups)
        self.groups = [
            KINDS[facts.kind](index, facts, pool_of(facts, self.arena), grain)
            for index, facts in enumerate(groups)
        ]
        self._owners = [group for group in self.groups if not group.facts.slab_pages]
        sharers = [group for group in self.groups if group.facts.slab_pages]
        for group in sharers:
            group.share([other for other in sharers if other is not group])
        self.tokens = [group for group in self.groups if group.keeps_tokens]
        self.states = [group for group in self.groups if not group.keeps_tokens]
        self.windows = [group for group in self.groups if isinstance(group, WindowGroup)]
        self.has_full = any(isinstance(group, FullGroup) for group in self.groups)
        self._choosy = [group for group in self.groups if not isinstance(group, FullGroup)]
        """Groups in which not every known prefix is valid."""
        self._is_plain = len(self.groups) == 1 and self.has_full
        self._tree = PrefixTree(self.groups)
        for group in self.groups:
            group.join(self._tree)
        self._row_tokens = row_tokens
        self.max_tokens = self._longest()
        """The longest request that fits alone; None: there is no bound. Tokens."""

    # Figures: sums of pages over the groups that have memory of their own, and of shared slabs.

    @property
    def num_total(self) -> int:
        """Pages or slabs that requests can have, those of the null pages not among them."""
        slabs = self.arena.num_total if self.arena is not None else 0
        return slabs + sum(group.pool.num_total for group in self._owners)

    @property
    def num_free(self) -> int:
        """Pages or slabs that hold nothing."""
        slabs = self.arena.num_free if self.arena is not None else 0
        return slabs + sum(group.pool.num_free for group in self._owners)

    @property
    def num_idle(self) -> int:
        """Pages or slabs that hold only what no live request uses."""
        slabs = self.arena.num_loose if self.arena is not None else 0
        return slabs + sum(group.num_idle for group in self._owners)

    @property
    def num_evicted(self) -> int:
        """Pages that were evicted for others, since the start."""
        return sum(group.num_evicted for group in self.groups)

    # Prefixes.

    def match(self, ids: Sequence[bytes], limit: int) -> Hit:
        """Find the longest prefix of ``ids`` valid in every group, at most ``limit`` grains.

        Presence is not monotone: a window's pages may be gone in the middle, a state is kept at
        few nodes. So each group says where the longest valid prefix ends at or before what the
        others allow, until all agree. Holds nothing.
        """
        if not self.is_sharing:
            return self.no_hit()
        known = self._tree.depth(ids, limit)
        if not known:
            return self.no_hit()
        path = self._tree.path(ids, known)
        end, agreed = known, -1
        while end != agreed:
            agreed = end
            for group in self._choosy:
                end = group.longest_end(path, end)
        del path[end:]
        return Hit(end, known, path, [group.needed(path, end) for group in self.groups])

    def depth(self, ids: Sequence[bytes], limit: int) -> int:
        """Return how many grains :meth:`match` would find."""
        if self.is_sharing and not self._choosy:
            return self._tree.depth(ids, limit)
        return self.match(ids, limit).end

    def no_hit(self) -> Hit:
        """Return what the tree has of a prefix that it does not know."""
        return Hit(0, 0, [], [[] for _ in self.groups])

    def needs(self, hit: Hit, num_tokens: int) -> list[int]:
        """Return how many new pages a request needs that goes on from ``hit``, a group.

        Of a window group it gets as many as it will hold in the long run: further ones are taken
        as chunks need them, when others have been left behind.

        Args:
            hit: Where it goes on from.
            num_tokens: Tokens that it computes before the device feeds it.
        """
        size = self.page_tokens
        count = -(-num_tokens // size) - hit.end
        return [group.num_first(count) for group in self.groups]

    def hold(self, hit: Hit) -> None:
        """Keep what ``hit`` found."""
        for group, pages in zip(self.groups, hit.pages, strict=True):
            group.hold(pages)

    def let_go(self, hit: Hit) -> None:
        """Stop holding what ``hit`` found, before any step read it."""
        for group, pages in zip(self.groups, hit.pages, strict=True):
            group.let_go(reversed(pages), 0)

    def take(self, counts: Sequence[int]) -> list[list[int]] | None:
        """Take so many pages of each group, all or none."""
        taken: list[list[int]] = []
        for group, count in zip(self.groups, counts, strict=True):
            pages = group.take(count)
            if pages is None:
                for earlier, back in zip(self.groups, taken, strict=False):
                    earlier.free(back, 0)
                return None
            taken.append(pages)
        return taken

    def open(self, hit: Hit, fresh: Sequence[list[int]]) -> Tables:
        """Return the tables of a request that goes on from ``hit``, which it holds.

        Args:
            hit: Where it goes on from.
            fresh: Its new pages, a group.
        """
        num_shared = hit.end if self.has_full else 0
        tables = Tables([], [], hit.path, hit.end, num_shared, not self.is_sharing)
        for group, cached, pages in zip(self.groups, hit.pages, fresh, strict=True):
            if not group.keeps_tokens:
                source = cached[0] if cached else None
                read = pages[0] if source is None else source.page
                tables.states.append(StateTable([read, pages[0]], source))
                continue
            if not hit.end:
                tables.tokens.append(PageTable(pages, []))
                continue
            first = hit.end - len(cached)
            table_pages = [NULL_PAGE] * first + [each.page for each in cached] + pages
            tables.tokens.append(PageTable(table_pages, [*[None] * first, *cached], first))
        return tables

    def publish(self, tables: Tables, ids: Sequence[bytes], count: int, step: int) -> bool:
        """Offer a request's pages of its first ``count`` grains to the tree.

        Args:
            tables: The request's.
            ids: Digests of its grains.
            count: Grains whose tokens are known, and computed by launched steps.
            step: Last step that writes them; only later ones may read them.

        Returns:
            Whether later grains may be offered, too.
        """
        if self._is_plain:
            return self._publish_full(tables, ids, count, step)
        for index in range(tables.published, count):
            if all(index < table.first for table in tables.tokens):
                for table in tables.tokens:
                    table.cached.append(None)
                tables.published = index + 1
                continue
            if not self._tree.reach(tables.path, ids, index + 1):
                tables.is_private = True
                return False
            self._offer(tables, index, step)
            tables.published = index + 1
        return True

    def checkpoint(self, tables: Tables, ids: Sequence[bytes], count: int, step: int) -> bool:
        """Keep the state that ``step`` leaves after ``count`` grains, unless it is kept already.

        The page that the step writes to goes to the node, and the request continues on a new one.

        Returns:
            Whether the request's entries turn after the step.
        """
        # First of all: what is evicted for them may be the last that keeps the node listed.
        fresh = [group.take(1) for group in self.states]
        node = None
        if self._tree.reach(tables.path, ids, count):
            node = tables.path[count - 1]
        is_made = False
        for group, table, pages in zip(self.states, tables.states, fresh, strict=True):
            if pages is None:
                continue
            if node is None or node.pages[group.index] is not None:
                group.free(pages, 0)
                continue
            table.made = group.offer(node, table.pages[STATE_OUT], step)
            table.spare = pages[0]
            is_made = True
        if node is not None and not is_made:
            self._tree.forget_empty(node)
        return is_made

    def extend(self, tables: Tables, begin: int, end: int, last_step: int) -> int:
        """Get pages of the window groups for a chunk, giving back those it leaves behind.

        Args:
            tables: The request's.
            begin: Where its chunk begins. Tokens.
            end: Where it may end, at most.
            last_step: Last step that was launched with them.

        Returns:
            Where it can end; ``begin`` when no page is to be had.
        """
        self.trim(tables, begin, last_step)
        size = self.page_tokens
        taken: list[tuple[Group, PageTable, list[int]]] = []
        for group, table in zip(self.tokens, tables.tokens, strict=True):
            short = -(-end // size) - len(table.pages)
            if short <= 0:
                continue
            pages = group.take_some(short)
            taken.append((group, table, pages))
            end = min(end, (len(table.pages) + len(pages)) * size)
        for group, table, pages in taken:
            if end > begin:
                table.pages += pages
            else:
                group.free(pages, 0)
        return max(begin, end)

    def grow(self, tables: Sequence[Tables], counts: Sequence[int]) -> bool:
        """Give each of ``tables`` so many more pages in each group of tokens, all or none."""
        total = sum(counts)
        taken = self.take([total if group.keeps_tokens else 0 for group in self.groups])
        if taken is None:
            return False
        for place, group in enumerate(self.tokens):
            pages = taken[group.index]
            if total == len(tables) and max(counts, default=0) <= 1:
                for each, page in zip(tables, pages, strict=True):
                    each.tokens[place].pages.append(page)
                continue
            begin = 0
            for each, count in zip(tables, counts, strict=True):
                each.tokens[place].pages += pages[begin : begin + count]
                begin += count
        return True

    def give_up_twins(self, tables: Tables, step: int) -> bool:
        """Put a request's own page in the place of every twin that no other request uses.

        So a request that runs alone pins no more pages than it has, and always fits.

        Args:
            tables: The request's.
            step: Last step that was launched with them.

        Returns:
            Whether a page became free, or will once the steps in flight have settled.
        """
        has_freed = False
        for group, table in zip(self.tokens, tables.tokens, strict=True):
            if not table.has_twins:
                continue
            for page, known in zip(table.pages, table.cached, strict=False):
                if known is not None and known.page != page and known.users == 1:
                    group.exchange(known, page, step)
                    has_freed = True
        return has_freed

    def trim(self, tables: Tables, begin: int, last_step: int) -> None:
        """Give back what no query at token ``begin`` or later reads.

        Cached pages stay until they are evicted.
        """
        for group, table in zip(self.tokens, tables.tokens, strict=True):
            first = min(group.first_entry(begin), len(table.pages))
            if first <= table.first:
                continue
            cached = table.cached
            for index in range(table.first, first):
                known = cached[index] if index < len(cached) else None
                if known is None:
                    group.free([table.pages[index]], last_step)
                else:
                    group.let_go((known,), last_step)
                    cached[index] = None
                table.pages[index] = NULL_PAGE
            table.first = first

    def release(self, tables: Tables, last_step: int) -> None:
        """Take back all that a request had; what is in the tree stays cached.

        Args:
            tables: The request's.
            last_step: Last step that was launched with them.
        """
        for group, table in zip(self.tokens, tables.tokens, strict=True):
            held = [cached for cached in reversed(table.cached) if cached is not None]
            group.let_go(held, last_step)
            private = table.private()
            if private:
                group.free(private, last_step)
        for group, table in zip(self.states, tables.states, strict=True):
            group.let_go(table.cached(), last_step)
            group.free(table.private(), last_step)

    # Faults, steps and the operator.

    def withdraw(self, nodes: Sequence[Node]) -> None:
        """Make ``nodes``, and what follows them, unfindable: a fault made them wrong."""
        self._tree.withdraw(nodes)

    def withdraw_since(self, step: int) -> None:
        """Make unfindable what ``step`` or a later one has written."""
        self._tree.withdraw(self._tree.written_since(step))

    def settle(self, step: int) -> None:
        """Note that every step up to ``step`` has settled."""
        for group in self.groups:
            group.settle(step)

    def flush(self) -> int:
        """Forget every prefix that no live request uses; returns how many pages that frees."""
        return sum(group.flush() for group in self.groups)

    def close(self) -> None:
        """Forget all that is cached; nothing is asked of the cache any more."""
        self._tree.clear()

    def check(self, live: Sequence[Tables]) -> None:
        """Assert that no page is lost and none has two owners. For tests.

        Args:
            live: The tables of every request that has some.
        """
        self._tree.check()
        private: list[list[int]] = [[] for _ in self.groups]
        orphans: list[dict[int, None]] = [{} for _ in self.groups]
        for tables in live:
            for group, table in zip(self.tokens, tables.tokens, strict=True):
                private[group.index] += table.private()
                _note_orphans(group, table.cached, orphans)
            for group, table in zip(self.states, tables.states, strict=True):
                private[group.index] += table.private()
                _note_orphans(group, table.cached(), orphans)
        for group in self.groups:
            group.check([*private[group.index], *orphans[group.index]])

    def _publish_full(self, tables: Tables, ids: Sequence[bytes], count: int, step: int) -> bool:
        """:meth:`publish` where one group keeps every token: the same, in fewer turns."""
        path, table, tree = tables.path, tables.tokens[0], self._tree
        parent = path[-1] if path else None
        if parent is not None and not parent.is_listed:
            tables.is_private = True
            return False
        group = self.groups[0]
        index = tables.published
        while index < count and (node := tree.find(ids[index])) is not None:
            cached = group.offer(node, table.pages[index], step)
            if cached is None:
                cached = group.join_twin(node)
                if not table.has_twins:
                    table.has_twins = True
                    tables.num_shared = index
            path.append(node)
            table.cached.append(cached)
            parent = node
            index += 1
        # Nothing follows a node that is not there.
        nodes, held = tree.insert_chain(parent, ids[index:count], 0, table.pages[index:count], step)
        path += nodes
        table.cached += held
        tables.published = count
        if not table.has_twins:
            tables.num_shared = count
        return True

    def _longest(self) -> int | None:
        """Return how long a request may be that has all pages for itself; None: without end.

        Raises:
            ConfigError: Not even one token fits.
        """
        most = max((group.pool.num_total for group in self.groups), default=0)
        low, high = 0, self.page_tokens * (1 + most)
        if self._fits(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(middle) else (low, middle)
        if not low:
            raise ConfigError(
                f"The cache is too small for one token: {self.num_total} pages or slabs in"
                f" {len(self.groups)} groups.",
                remedy="Give the server a larger cache.",
            )
        return low

    def _fits(self, num_tokens: int) -> bool:
        num_slabs = 0
        for group in self.groups:
            count = group.num_held(num_tokens, self._row_tokens)
            if group.facts.slab_pages:
                # What a window holds need not begin where a slab does.
                is_window = isinstance(group, WindowGroup)
                num_slabs += -(-count // group.facts.slab_pages) + is_window
            elif count > group.pool.num_total:
                return False
        return self.arena is None or num_slabs <= self.arena.num_total

    def _offer(self, tables: Tables, index: int, step: int) -> None:
        """Offer the pages of grain ``index``, which has a node."""
        node = tables.path[index]
        for group, table in zip(self.tokens, tables.tokens, strict=True):
            known: CachedPage | None = None
            if index >= table.first:
                known = group.offer(node, table.pages[index], step)
            if known is None and isinstance(group, FullGroup):
                # Whoever holds a full page holds those before it: else they could be evicted.
                known = group.join_twin(node)
                table.has_twins = True
            table.cached.append(known)
        if self.has_full and not any(table.has_twins for table in tables.tokens):
            tables.num_shared = index + 1


def _note_orphans(
    group: Group, pages: Sequence[CachedPage | None], orphans: list[dict[int, None]]
) -> None:
    """Note pages that are held, but not found any more."""
    for cached in pages:
        if cached is not None and not (
            cached.node.is_listed and cached.node.pages[group.index] is cached
        ):
            orphans[group.index][cached.page] = None


def _grain(groups: Sequence[PageGroup]) -> int:
    """Return how many tokens a node holds.

    Raises:
        UnsupportedError: The groups do not fit together.
    """
    for facts in groups:
        if facts.kind not in KINDS:
            raise UnsupportedError(
                f"The model needs a page group of kind {facts.kind!r}; the cache keeps"
                f" {', '.join(KINDS)}.",
                remedy="Serve another model, or use a version that keeps such groups.",
            )
    sizes = list(dict.fromkeys(facts.page_tokens for facts in groups if facts.kind != "state"))
    if len(sizes) > 1:
        raise UnsupportedError(
            f"The model's page groups have pages of {', '.join(map(str, sizes))} tokens; the"
            " cache keeps groups of equal pages.",
            remedy="Set page_size so that all groups have the same.",
        )
    return sizes[0] if sizes else STATE_GRAIN
