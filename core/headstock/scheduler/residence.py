"""The pages of requests: how one gets, shares, publishes and gives back its own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from headstock.cache import Group, Hit, PageCache, Tables, chain_ids, child_id, root_id
from headstock.scheduler.changes import Changes
from headstock.scheduler.request import NEVER, Request


class Entry(Enum):
    """What came of a request's try to move in."""

    ADMITTED = auto()
    NO_PAGES = auto()
    PREFIX_PENDING = auto()


class Residence:
    """Moves requests into the page cache and out of it.

    A page enters the tree when the host knows its tokens and the step that writes its last key
    and value is planned: a prompt's pages at launch, generated ones when their ids have settled.
    Until then an admitted request *promises* its prompt pages, and who needs one of those next
    waits for it instead of computing the same. Where a state is kept, only what ends at a
    checkpoint can be taken over, so only checkpoints are promised.

    Args:
        cache: The pages.
        checkpoint_tokens: Keep the state each time a prompt has grown by so many tokens; None: only
            at its end, and where it parts from a cached one.
    """

    def __init__(self, cache: PageCache, checkpoint_tokens: int | None = None) -> None:
        self.cache = cache
        self._page_tokens = cache.page_tokens
        self._checkpoint_tokens = checkpoint_tokens
        is_plain = len(cache.tokens) == 1 and not cache.windows
        self._only = cache.tokens[0] if is_plain else None
        self._promised: dict[bytes, Request] = {}
        self._short: tuple[int, int] | None = None
        """The group that fell short, and how many of its pages must be available."""

    @property
    def is_short(self) -> bool:
        """Whether the pages are still missing that the last one who got none needs."""
        if self._short is None:
            return False
        index, wanted = self._short
        return wanted > self.cache.groups[index].num_available

    def forget_short(self) -> None:
        """Try again: there are others to admit now."""
        self._short = None

    def cached_grains(self, request: Request) -> int:
        """Return how many leading grains of a waiting request are in the tree and usable."""
        limit = self._usable_grains(request)
        return self.cache.depth(self._ids(request, limit), limit)

    def move_in(self, request: Request, step: int, num_running: int) -> Entry:
        """Give ``request`` pages for all its known tokens, sharing what the tree has.

        Args:
            request: One that waits.
            step: The step being planned.
            num_running: Requests that are in; a page of each group is left available for each:
                growing at once costs less than retraction.

        Returns:
            ADMITTED, or why not; then nothing has changed.
        """
        limit = self._usable_grains(request)
        ids = self._ids(request, limit)
        hit = self.cache.match(ids, limit)
        if any(cached.written == step for pages in hit.pages for cached in pages):
            return Entry.PREFIX_PENDING
        if self._is_promised(ids, hit.end, limit):
            return Entry.PREFIX_PENDING
        tables = self._open(request, hit, num_running)
        if tables is None and not num_running and (hit.end or self.cache.arena is not None):
            # What the hit reads, and what is written, may be more than there is, and idle pages may
            # lie in every slab: start anew.
            if self.cache.arena is not None:
                self.cache.flush()
            hit = self.cache.no_hit()
            tables = self._open(request, hit, num_running)
        if tables is None:
            return Entry.NO_PAGES
        request.tables = tables
        request.pages = tables.tokens[0].pages if tables.tokens else []
        request.num_shared = tables.num_shared
        request.computed = hit.end * self._page_tokens
        request.host_end = request.num_known
        request.drawn = len(request.outputs)
        request.is_private = not self.cache.is_sharing
        request.is_turning = False
        request.cuts = []
        if not request.is_private:
            if self.cache.states:
                request.cuts = self._cuts(request, hit)
            self._promise(request)
            self._note_next(request)
        return Entry.ADMITTED

    def grow(self, requests: Sequence[Request], ends: Sequence[int], changes: Changes) -> bool:
        """Give each of ``requests`` pages for its first ``ends`` tokens, all or none.

        Args:
            requests: The device feeds them.
            ends: Tokens.
            changes: Where new pages are noted.

        Returns:
            Whether there were enough.
        """
        cache, size = self.cache, self._page_tokens
        if cache.windows:
            for request in requests:
                begin = len(request.prompt) + request.drawn - 1
                cache.trim(request.tables, begin, request.last_step)
        begins = [len(request.pages) for request in requests]
        counts = [max(0, -(-end // size) - begin) for end, begin in zip(ends, begins, strict=True)]
        if self._only is not None and max(counts) == min(counts) == 1:
            return self._grow_by_one(self._only, requests, begins, changes)
        if not cache.grow([request.tables for request in requests], counts):
            return False
        for request, begin in zip(requests, begins, strict=True):
            changes.append(request, begin)
        return True

    def _grow_by_one(
        self, group: Group, requests: Sequence[Request], begins: Sequence[int], changes: Changes
    ) -> bool:
        """:meth:`grow` by a page each where there is one group: the same, in fewer turns."""
        pages = group.take(len(requests))
        if pages is None:
            return False
        for request, begin, page in zip(requests, begins, pages, strict=True):
            request.pages.append(page)
            changes.set(request.slot, group.index, begin, page)
        return True

    def extend(self, request: Request, end: int, changes: Changes) -> int:
        """Get pages for a chunk up to ``end``; returns where it can end."""
        tables = request.tables
        begins = [len(table.pages) for table in tables.tokens]
        end = self.cache.extend(tables, request.computed, end, request.last_step)
        for place, begin in enumerate(begins):
            changes.append_pages(request, place, begin)
        return end

    def publish(self, request: Request, end: int, step: int) -> None:
        """Enter the full pages among the first ``end`` tokens into the tree.

        Args:
            request: Whose tokens are known up to ``end``, and computed by launched steps.
            end: Tokens.
            step: Last step that writes them; only later ones may read them.
        """
        tables = request.tables
        count = end // self._page_tokens
        begin = tables.published
        if request.is_private or count <= begin or not tables.tokens:
            return
        ids = self._ids(request, count)
        goes_on = self.cache.publish(tables, ids, count, step)
        request.num_shared = tables.num_shared
        if not self.cache.states:
            for page_id in ids[begin:count]:
                if self._promised.get(page_id) is request:
                    del self._promised[page_id]
        if goes_on:
            self._note_next(request)
        else:
            self._make_private(request)

    def checkpoint(self, request: Request, end: int, step: int) -> None:
        """Keep the state of ``request`` after its first ``end`` tokens, which ``step`` computes."""
        count = end // self._page_tokens
        ids = self._ids(request, count)
        if not request.is_private:
            self.cache.checkpoint(request.tables, ids, count, step)
        if self._promised.get(ids[count - 1]) is request:
            del self._promised[ids[count - 1]]

    def turn(self, request: Request, changes: Changes) -> None:
        """Change the state entries of ``request`` for the row being planned.

        They change again before the row after it, where this one reads another page than it writes.
        """
        for group, table in zip(self.cache.states, request.tables.states, strict=True):
            if not table.is_turning:
                continue
            entries, read = table.turn()
            for entry in entries:
                changes.set(request.slot, group.index, entry, table.pages[entry])
            if read is not None:
                group.let_go((read,), request.last_step)
        request.is_turning = any(table.is_turning for table in request.tables.states)

    def withdraw(self, request: Request) -> None:
        """Make the pages of ``request`` unfindable, those that it found in the tree, too.

        Where the fault comes from is not known: were it in a shared page, whoever found that
        next would fail, too.
        """
        self.cache.withdraw(request.tables.path)

    def move_out(self, request: Request) -> None:
        """Take all pages back; those in the tree stay cached."""
        self._break_promises(request)
        self.cache.release(request.tables, request.last_step)
        request.tables = Tables([], [])
        request.pages = []
        request.computed = 0
        request.publish_at = NEVER

    def _open(self, request: Request, hit: Hit, num_running: int) -> Tables | None:
        """Hold ``hit`` and take the pages that are missing; None: there are not enough."""
        cache = self.cache
        wanted = cache.needs(hit, request.num_known)
        needs = list(wanted)
        for group in cache.tokens:
            wanted[group.index] += num_running
        available = [group.num_available for group in cache.groups]
        if not self._are_available(wanted):
            return None
        cache.hold(hit)
        # Cached pages that nothing held until now are no longer available to anyone else.
        after = [group.num_available for group in cache.groups]
        held = [was - now for was, now in zip(available, after, strict=True)]
        fresh = cache.take(needs) if self._are_available(wanted, held) else None
        if fresh is None:
            cache.let_go(hit)
            return None
        return cache.open(hit, fresh)

    def _are_available(self, wanted: Sequence[int], held: Sequence[int] | None = None) -> bool:
        """Return whether so many pages of each group are available; notes what is short.

        Args:
            wanted: Pages, a group.
            held: How many of those that were available are held now by who wants them.
        """
        for group, count in zip(self.cache.groups, wanted, strict=True):
            if count > group.num_available:
                extra = held[group.index] if held is not None else 0
                self._short = (group.index, count + extra)
                return False
        self._short = None
        return True

    def _usable_grains(self, request: Request) -> int:
        """Grains that it may take from the tree; the last known token is always computed."""
        last = request.num_known - 1
        if request.score_next < len(request.prompt):
            # A token's logprob comes from the position before it, which must be computed too.
            last = min(last, request.score_next - 1)
        return last // self._page_tokens

    def _ids(self, request: Request, count: int) -> list[bytes]:
        """Return the digests of at least the first ``count`` grains of known tokens."""
        ids = request.page_ids
        size = self._page_tokens
        if len(ids) < count and not ids:
            ids += chain_ids(root_id(request.namespace, request.adapter), request.prompt, size)
        while len(ids) < count:
            begin = len(ids) * size
            parent = ids[-1] if ids else root_id(request.namespace, request.adapter)
            ids.append(child_id(parent, request.tokens(begin, begin + size)))
        return ids

    def _cuts(self, request: Request, hit: Hit) -> list[int]:
        """Return where its chunks end to keep a state, the next one last. Tokens.

        At the end of what it knows, where it parts from what another request had, and at each
        multiple of the setting.
        """
        size = self._page_tokens
        last = (request.num_known - 1) // size
        grains = {last: None, min(hit.known, last): None}
        if self._checkpoint_tokens is not None:
            every = -(-self._checkpoint_tokens // size)
            grains |= dict.fromkeys(range(every, last, every))
        return sorted((grain * size for grain in grains if grain > hit.end), reverse=True)

    def _is_promised(self, ids: Sequence[bytes], end: int, limit: int) -> bool:
        """Return whether a request is about to compute what would make the hit longer."""
        if not self.cache.states:
            return end < limit and ids[end] in self._promised
        promised = self._promised
        return bool(promised) and any(page_id in promised for page_id in ids[end:limit])

    def _promise(self, request: Request) -> None:
        size = self._page_tokens
        count = request.num_known // size
        ids = self._ids(request, count)
        if self.cache.states:
            promised = [ids[cut // size - 1] for cut in request.cuts]
        else:
            promised = ids[request.tables.published : count]
        for page_id in promised:
            self._promised.setdefault(page_id, request)

    def _break_promises(self, request: Request) -> None:
        begin = 0 if self.cache.states else request.tables.published
        for page_id in request.page_ids[begin:]:
            if self._promised.get(page_id) is request:
                del self._promised[page_id]

    def _make_private(self, request: Request) -> None:
        """Keep what it writes from now on to itself: another request publishes the same."""
        self._break_promises(request)
        request.is_private = True
        request.publish_at = NEVER

    def _note_next(self, request: Request) -> None:
        if request.tables.tokens:
            next_page_end = (request.tables.published + 1) * self._page_tokens
            request.publish_at = next_page_end - len(request.prompt)
