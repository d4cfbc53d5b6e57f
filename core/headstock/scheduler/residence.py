"""The pages of requests: how one gets, shares, publishes and gives back its own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from headstock.cache import Node, PageCache, chain_ids, child_id, root_id
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
        request.first_twin = NEVER
        request.pages = [node.page for node in nodes] + pages
        request.computed = num_matched * self._page_tokens
        request.host_end = request.num_known
        request.drawn = len(request.outputs)
        request.is_private = not self.cache.is_sharing
        if not request.is_private:
            self._promise(request)
            self._note_next(request)
        return Entry.ADMITTED

    def grow(self, requests: Sequence[Request]) -> list[int] | None:
        """Give each of ``requests`` one more page, all or none."""
        pages = self.cache.take(len(requests))
        if pages is None and sum(map(self._give_up_twins, requests)):
            pages = self.cache.take(len(requests))
        if pages is None:
            return None
        for request, page in zip(requests, pages, strict=True):
            request.pages.append(page)
        return pages

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
                node = self._twin(request, parent, ids, index)
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
        """Return its pages that are not in the tree: the last ones, and twins of others' pages."""
        pages, path = request.pages, request.path
        twins = [page for page, node in zip(pages, path, strict=False) if node.page != page]
        return twins + pages[len(path) :]

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

    def _twin(
        self, request: Request, parent: Node | None, ids: Sequence[bytes], index: int
    ) -> Node | None:
        """Hold and return the node at which another live request has the same page of tokens.

        The request keeps the page that it wrote, which the device knows, until it moves out; its
        later pages follow the other's in the tree, so that they are found, too.

        Returns:
            None when what comes before has been withdrawn.
        """
        nodes = self.cache.match(ids, index + 1)
        if len(nodes) <= index or (index > 0 and nodes[index - 1] is not parent):
            return None
        self.cache.hold(nodes[index:])
        request.first_twin = min(request.first_twin, index)
        return nodes[index]

    def _give_up_twins(self, request: Request) -> int:
        """Let the tree have the page of ``request`` for every twin that nobody else uses.

        So a request that runs alone pins no more pages than it has, and always fits.

        Returns:
            Pages that became free, or will once the steps in flight have settled.
        """
        if request.first_twin == NEVER:
            return 0
        num_freed = 0
        for page, node in zip(request.pages, request.path, strict=False):
            if node.page != page and node.users == 1:
                self.cache.exchange(node, page, request.last_step)
                num_freed += 1
        return num_freed

    def _break_promises(self, request: Request) -> None:
        for page_id in request.page_ids[len(request.path) :]:
            if self._promised.get(page_id) is request:
                del self._promised[page_id]

    def _make_private(self, request: Request) -> None:
        """Keep what it writes from now on to itself: what comes before it was withdrawn."""
        self._break_promises(request)
        request.is_private = True
        request.publish_at = NEVER

    def _note_next(self, request: Request) -> None:
        next_page_end = (len(request.path) + 1) * self._page_tokens
        request.publish_at = next_page_end - len(request.prompt)
