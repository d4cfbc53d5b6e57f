"""Pages from the pool to the tree and back: the one door through which requests get KV memory."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.cache.pool import PagePool
from headstock.cache.quarantine import Quarantine
from headstock.cache.tree import Node, PrefixTree
from headstock.errors import UnsupportedError
from headstock.wire.steps import PageGroup


class PageCache:
    """The pages of a model's one group of layers: free, held, cached, or in quarantine.

    Args:
        groups: The runner's page groups. One that keeps every token is supported today.
        is_sharing: Whether equal prefixes share pages.

    Raises:
        UnsupportedError: The model needs a group of another kind.
    """

    def __init__(self, groups: Sequence[PageGroup], *, is_sharing: bool = True) -> None:
        if [group.kind for group in groups] != ["full"]:
            kinds = ", ".join(group.kind for group in groups) or "none"
            raise UnsupportedError(
                f"The model needs page groups {kinds}; the cache keeps one, full.",
                remedy="Serve a model whose layers all keep full attention.",
            )
        self.page_tokens = groups[0].page_tokens
        self.is_sharing = is_sharing
        self.num_evicted = 0
        self._pool = PagePool(groups[0].num_pages)
        self._tree = PrefixTree()
        self._quarantine = Quarantine()
        self._settled = 0

    @property
    def num_total(self) -> int:
        """Pages that requests can have, the null page not among them."""
        return self._pool.num_total

    @property
    def num_free(self) -> int:
        """Pages that hold nothing."""
        return self._pool.num_free

    @property
    def num_idle(self) -> int:
        """Pages that hold a prefix that no live request uses."""
        return self._tree.num_idle

    @property
    def num_available(self) -> int:
        """Pages that are free or can be made so, once the steps in flight have settled."""
        return self._pool.num_free + self._tree.num_idle + self._quarantine.num_pages

    def match(self, ids: Sequence[bytes], limit: int) -> list[Node]:
        """Return the longest cached prefix of ``ids``, at most ``limit`` pages; holds nothing."""
        return self._tree.match(ids, limit) if self.is_sharing else []

    def depth(self, ids: Sequence[bytes], limit: int) -> int:
        """Return how many pages :meth:`match` would find."""
        return self._tree.depth(ids, limit) if self.is_sharing else 0

    def hold(self, nodes: Sequence[Node]) -> None:
        """Keep ``nodes``, a path from a root, for a request."""
        self._tree.hold(nodes)

    def take(self, count: int) -> list[int] | None:
        """Take ``count`` pages, all or none, evicting the least recently used prefixes.

        Returns:
            The page ids, or None: what is missing is held by requests or by steps in flight.
        """
        short = count - self._pool.num_free
        if short > 0:
            evicted = self._tree.evict(short, self._settled)
            self._pool.give_back(evicted)
            self.num_evicted += len(evicted)
        return self._pool.take(count)

    def publish(self, parent: Node | None, node_id: bytes, page: int, step: int) -> Node | None:
        """Make a full page that its writer holds findable by the steps after ``step``.

        When the same prefix is cached already, ``page`` takes the place of an idle page, which is
        freed: no request ever pins two pages for the same tokens.

        Returns:
            The node, held; or None: requests use another page of the same prefix, or what comes
            before has been withdrawn. Then the page stays its writer's own.
        """
        if parent is not None and not parent.is_listed:
            return None
        known = self._tree.find(node_id)
        if known is None:
            return self._tree.insert(parent, node_id, page, step)
        if known.users:
            return None
        last_step = known.last_step
        self._free_after([self._tree.replace(known, page, step)], last_step)
        return known

    def release(self, path: Sequence[Node], private: list[int], last_step: int) -> None:
        """Take back what a request had.

        Args:
            path: Nodes that it held, in order; they stay cached.
            private: Pages that only it knew.
            last_step: Last step that was launched with them.
        """
        for node in self._tree.let_go(path, last_step):
            self._free_after([node.page], node.last_step)
        if private:
            self._free_after(private, last_step)

    def withdraw(self, nodes: Sequence[Node]) -> None:
        """Let nobody find ``nodes``, nor what follows them: a fault made them wrong."""
        for node in self._tree.withdraw(nodes):
            self._free_after([node.page], node.last_step)

    def withdraw_since(self, step: int) -> None:
        """Let nobody find what ``step`` or a later one has written."""
        self.withdraw(self._tree.written_since(step))

    def settle(self, step: int) -> None:
        """Note that every step up to ``step`` has settled."""
        self._settled = step
        self._pool.give_back(self._quarantine.settle(step))

    def flush(self) -> int:
        """Forget every prefix that no live request uses; returns how many pages that frees."""
        nodes = self._tree.flush()
        for node in nodes:
            self._free_after([node.page], node.last_step)
        return len(nodes)

    def check(self, private: Sequence[int]) -> None:
        """Assert that no page is lost and none has two owners. For tests.

        Args:
            private: Every page that live requests hold outside the tree.
        """
        self._pool.check()
        self._tree.check()
        owned = sorted([*private, *self._tree.pages()])
        assert len(set(owned)) == len(owned), f"a page has two owners: {owned}"
        accounted = len(owned) + self._pool.num_free + self._quarantine.num_pages
        assert accounted == self.num_total, f"{self.num_total - accounted} pages leaked"

    def _free_after(self, pages: list[int], last_step: int) -> None:
        if last_step <= self._settled:
            self._pool.give_back(pages)
        else:
            self._quarantine.put(pages, last_step)
