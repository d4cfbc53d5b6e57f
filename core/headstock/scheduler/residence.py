"""The pages of requests: how one gets, shares, publishes and gives back its own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from headstock.cache import (
    NO_CONTENTS,
    NO_TABLES,
    Group,
    Hit,
    PageCache,
    RecentChains,
    Tables,
    chain_ids,
    child_id,
    num_in_use,
    root_id,
)
from headstock.scheduler.encoder import contents_of
from headstock.scheduler.request import Request
from headstock.scheduler.writer import Changes


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
        self._chains = RecentChains(cache.page_tokens)
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
        if request.awaited in self._promised:
            return Entry.PREFIX_PENDING
        request.awaited = None
        limit = self._usable_grains(request)
        ids = self._ids(request, limit)
        hit = self.cache.match(ids, limit)
        if (hit.end or self._promised) and self._is_pending(request, ids, hit, limit, step):
            return Entry.PREFIX_PENDING
        notes = request.notes
        num_evicted, num_shared = 0, 0
        if notes is not None:  # before it holds what it found
            num_evicted, num_shared = self.cache.num_evicted, num_in_use(hit.path)
        tables = self._open(request, hit, num_running)
        if tables is None and not num_running and (hit.end or self.cache.arena is not None):
            # What the hit reads, and what is written, may be more than there is, and idle pages may
            # lie in every slab: start anew.
            if self.cache.arena is not None:
                self.cache.flush()
            hit = self.cache.no_hit()
            num_shared = 0
            tables = self._open(request, hit, num_running)
        if tables is None:
            return Entry.NO_PAGES
        if notes is not None:
            notes.evicted_pages += self.cache.num_evicted - num_evicted
            notes.shared_tokens = num_shared * self._page_tokens
        request.tables = tables
        request.pages = tables.tokens[0].pages if tables.tokens else []
        request.num_shared = tables.num_shared
        request.computed = hit.end * self._page_tokens
        request.host_end = len(request.prompt) + len(request.outputs)
        request.drawn = len(request.outputs)
        request.is_private = not self.cache.is_sharing
        request.is_turning = False
        if request.is_private or not tables.tokens:
            request.look_at = request.max_outputs
        else:
            next_page_end = (hit.end + 1) * self._page_tokens
            request.look_at = min(next_page_end - len(request.prompt), request.max_outputs)
        if self.cache.states:
            request.cuts = [] if request.is_private else self._cuts(request, hit)
        return Entry.ADMITTED

    def promise(self, request: Request) -> None:
        """Note what ``request``, admitted in this step, will publish in later ones."""
        if request.is_private:
            return
        size, tables = self._page_tokens, request.tables
        count = request.host_end // size
        if self.cache.states:
            ids = self._ids(request, count)
            promised = [ids[cut // size - 1] for cut in request.cuts]
        elif count > tables.published:
            promised = self._ids(request, count)[tables.published : count]
        else:
            return
        for page_id in promised:
            self._promised.setdefault(page_id, request)

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
            if self._grow_by_one(self._only, requests, begins, changes):
                return True
        elif self._take(requests, counts):
            return self._note(requests, begins, changes)
        given_up = [cache.give_up_twins(each.tables, each.last_step) for each in requests]
        if not any(given_up) or not self._take(requests, counts):
            return False
        return self._note(requests, begins, changes)

    def _take(self, requests: Sequence[Request], counts: Sequence[int]) -> bool:
        return self.cache.grow([request.tables for request in requests], counts)

    def _note(self, requests: Sequence[Request], begins: Sequence[int], changes: Changes) -> bool:
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
        if self._promised and not self.cache.states:
            self._unpromise(request, ids[begin:count])
        if goes_on:
            next_page_end = (tables.published + 1) * self._page_tokens
            request.look_at = min(next_page_end - len(request.prompt), request.max_outputs)
        else:
            self._make_private(request)

    def checkpoint(self, request: Request, end: int, step: int) -> None:
        """Keep the state of ``request`` after its first ``end`` tokens, which ``step`` computes."""
        count = end // self._page_tokens
        ids = self._ids(request, count)
        if not request.is_private:
            self.cache.checkpoint(request.tables, ids, count, step)
        self._unpromise(request, ids[count - 1 : count])

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
        request.tables = NO_TABLES
        request.pages = []
        request.computed = 0

    def _open(self, request: Request, hit: Hit, num_running: int) -> Tables | None:
        """Hold ``hit`` and take the pages that are missing; None: there are not enough."""
        cache = self.cache
        needs = cache.needs(hit, len(request.prompt) + len(request.outputs))
        if not self._are_available(needs, num_running):
            return None
        if not hit.end:
            fresh = cache.take(needs)
            return None if fresh is None else cache.open(hit, fresh)
        before = [group.num_available for group in cache.groups]
        cache.hold(hit)
        # Cached pages that nothing held until now are no longer available to anyone else.
        fresh = cache.take(needs) if self._are_available(needs, num_running, before) else None
        if fresh is None:
            cache.let_go(hit)
            return None
        return cache.open(hit, fresh)

    def _are_available(
        self, needs: Sequence[int], num_spare: int, before: Sequence[int] | None = None
    ) -> bool:
        """Return whether there are enough pages in each group; notes what is short.

        Args:
            needs: Pages wanted, a group.
            num_spare: Pages to leave in each group of tokens.
            before: Pages that were available before who wants more held any, a group.
        """
        for group, need in zip(self.cache.groups, needs, strict=True):
            wanted = need + num_spare if group.keeps_tokens else need
            available = group.num_available
            if wanted > available:
                held = before[group.index] - available if before is not None else 0
                self._short = (group.index, wanted + held)
                return False
        self._short = None
        return True

    def _usable_grains(self, request: Request) -> int:
        """Grains that it may take from the tree; the last known token is always computed."""
        last = len(request.prompt) + len(request.outputs) - 1
        if request.score_next < len(request.prompt):
            # A token's logprob comes from the position before it, which must be computed too.
            last = min(last, request.score_next - 1)
        return last // self._page_tokens

    def _ids(self, request: Request, count: int) -> list[bytes]:
        """Return the digests of at least the first ``count`` grains of known tokens."""
        ids = request.page_ids
        size = self._page_tokens
        if len(ids) >= count:
            return ids
        contents = contents_of(request.media, size) if request.media else NO_CONTENTS
        if not ids:
            root = root_id(request.namespace, request.adapter)
            if contents:
                ids += chain_ids(root, request.prompt, size, contents)
            else:
                ids += self._chains.ids(root, request.prompt)
        while len(ids) < count:
            begin = len(ids) * size
            parent = ids[-1] if ids else root_id(request.namespace, request.adapter)
            content = contents.get(len(ids), b"")
            ids.append(child_id(parent, request.tokens(begin, begin + size), content))
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

    def _is_pending(
        self, request: Request, ids: Sequence[bytes], hit: Hit, limit: int, step: int
    ) -> bool:
        """Return whether what would make the hit longer, or a page of it, is in the making."""
        promised = self._promised
        if promised and hit.end < limit:
            reach = limit if self.cache.states else hit.end + 1
            for page_id in ids[hit.end : reach]:
                if page_id in promised:
                    request.awaited = page_id
                    return True
        return any(step in [cached.written for cached in pages] for pages in hit.pages)

    def _unpromise(self, request: Request, page_ids: Sequence[bytes]) -> None:
        promised = self._promised
        for page_id in page_ids:
            if promised.get(page_id) is request:
                del promised[page_id]

    def _break_promises(self, request: Request) -> None:
        if self._promised:
            begin = 0 if self.cache.states else request.tables.published
            self._unpromise(request, request.page_ids[begin:])

    def _make_private(self, request: Request) -> None:
        """Keep what it writes from now on to itself: what comes before it was withdrawn."""
        self._break_promises(request)
        request.is_private = True
        request.look_at = request.max_outputs
