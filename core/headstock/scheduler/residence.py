"""The pages of requests: how one gets, shares, publishes and gives back its own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from headstock.cache import PageCache, chain_ids, child_id, root_id
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
    waits for it instead of computing the same.
    """

    def __init__(self, cache: PageCache) -> None:
        self.cache = cache
        self._page_tokens = cache.page_tokens
        self._promised: dict[bytes, Request] = {}
        self.num_wanted = 0
        """Pages that must be available before who last got none can move in."""

    def cached_pages(self, request: Request) -> int:
        """Return how many leading pages of a waiting request are in the tree and usable."""
        limit = self._usable_pages(request)
        return self.cache.depth(self._ids(request, limit), limit)

    def move_in(self, request: Request, step: int, num_spare: int) -> Entry:
        """Give ``request`` pages for all its known tokens, sharing what the tree has.

        Args:
            request: One that waits.
            step: The step being planned.
            num_spare: Pages to leave available for those who are in.

        Returns:
            ADMITTED, or why not; then nothing has changed.
        """
        limit = self._usable_pages(request)
        ids = self._ids(request, limit)
        nodes = self.cache.match(ids, limit)
        num_matched = len(nodes)
        if any(node.written == step for node in nodes):
            return Entry.PREFIX_PENDING
        if num_matched < limit and ids[num_matched] in self._promised:
            return Entry.PREFIX_PENDING
        num_new = -(-request.num_known // self._page_tokens) - num_matched
        num_available = self.cache.num_available
        self.num_wanted = num_new + num_spare
        if self.num_wanted > num_available:
            return Entry.NO_PAGES
        self.cache.hold(nodes)
        # Cached pages that nobody held until now are no longer available to anyone else.
        self.num_wanted += num_available - self.cache.num_available
        pages = self.cache.take(num_new) if self.num_wanted <= num_available else None
        if pages is None:
            self.cache.release(nodes, [], 0)
            return Entry.NO_PAGES
        request.path = nodes
        request.pages = [node.page for node in nodes] + pages
        request.computed = num_matched * self._page_tokens
        request.host_end = request.num_known
        request.drawn = len(request.outputs)
        request.is_private = not self.cache.is_sharing
        if not request.is_private:
            self._promise(request)
            self._note_next(request)
        return Entry.ADMITTED

    def grow(self, requests: Sequence[Request], ends: Sequence[int]) -> bool:
        """Give each of ``requests`` pages for its first ``ends`` tokens, all or none.

        Returns:
            Whether there were enough.
        """
        size = self._page_tokens
        counts = [
            -(-end // size) - len(request.pages)
            for request, end in zip(requests, ends, strict=True)
        ]
        pages = self.cache.take(sum(counts))
        if pages is None:
            return False
        begin = 0
        for request, count in zip(requests, counts, strict=True):
            request.pages += pages[begin : begin + count]
            begin += count
        return True

    def publish(self, request: Request, end: int, step: int) -> None:
        """Enter the full pages among the first ``end`` tokens into the tree.

        Args:
            request: Whose tokens are known up to ``end``, and computed by launched steps.
            end: Tokens.
            step: Last step that writes them; only later ones may read them.
        """
        path = request.path
        count = end // self._page_tokens
        if request.is_private or count <= len(path):
            return
        ids = self._ids(request, count)
        for index in range(len(path), count):
            parent = path[index - 1] if index else None
            node = self.cache.publish(parent, ids[index], request.pages[index], step)
            if node is None:
                self._make_private(request)
                return
            path.append(node)
            if self._promised.get(ids[index]) is request:
                del self._promised[ids[index]]
        self._note_next(request)

    def withdraw(self, request: Request) -> None:
        """Let nobody find the pages of ``request``, those that it found in the tree neither.

        Where the fault comes from is not known: were it in a shared page, whoever found that
        next would fail, too.
        """
        self.cache.withdraw(request.path)

    def move_out(self, request: Request) -> None:
        """Take all pages back; those in the tree stay cached."""
        self._break_promises(request)
        self.cache.release(request.path, self.private_pages(request), request.last_step)
        request.path = []
        request.pages = []
        request.computed = 0
        request.publish_at = NEVER

    def private_pages(self, request: Request) -> list[int]:
        """Return its pages that are not in the tree."""
        return request.pages[len(request.path) :]

    def _usable_pages(self, request: Request) -> int:
        """Pages that it may take from the tree; the last known token is always computed."""
        last = request.num_known - 1
        if request.score_next < len(request.prompt):
            # A token's logprob comes from the position before it, which must be computed too.
            last = min(last, request.score_next - 1)
        return last // self._page_tokens

    def _ids(self, request: Request, count: int) -> list[bytes]:
        """Return the digests of at least the first ``count`` pages of known tokens."""
        ids = request.page_ids
        size = self._page_tokens
        if len(ids) < count and not ids:
            ids += chain_ids(root_id(request.namespace), request.prompt, size)
        while len(ids) < count:
            begin = len(ids) * size
            parent = ids[-1] if ids else root_id(request.namespace)
            ids.append(child_id(parent, request.tokens(begin, begin + size)))
        return ids

    def _promise(self, request: Request) -> None:
        count = request.num_known // self._page_tokens
        ids = self._ids(request, count)
        for index in range(len(request.path), count):
            self._promised.setdefault(ids[index], request)

    def _break_promises(self, request: Request) -> None:
        for page_id in request.page_ids[len(request.path) :]:
            if self._promised.get(page_id) is request:
                del self._promised[page_id]

    def _make_private(self, request: Request) -> None:
        """Keep what it writes from now on to itself: another request publishes the same."""
        self._break_promises(request)
        request.is_private = True
        request.publish_at = NEVER

    def _note_next(self, request: Request) -> None:
        next_page_end = (len(request.path) + 1) * self._page_tokens
        request.publish_at = next_page_end - len(request.prompt)
