"""The prefix tree: which page holds the keys and values of which tokens after which prefix.

A node is one page of tokens. Its id is chained to its parent's (:mod:`headstock.cache.digest`), so
one flat dictionary finds any node of any prefix, and a longest match is a binary search. A node
holds the page of the one group there is; further groups and tiers would give it a page, a tombstone
or a tier's location for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Node:
    """One page of tokens after one prefix.

    Attributes:
        id: Chained digest of the namespace and all tokens up to here.
        parent: The page before; None for a prefix's first page.
        page: Where its keys and values are.
        written: Step that writes its last token; later steps may read it.
        last_step: Last step launched by a user that has let go of it.
        users: Requests that hold it.
        is_listed: False once it is withdrawn: its users keep it, nobody else finds it.
    """

    id: bytes
    parent: Node | None
    page: int
    written: int
    last_step: int = 0
    users: int = 1
    is_listed: bool = True


class PrefixTree:
    """Finds, shares and evicts pages by what they hold.

    Whoever holds a node holds its ancestors, and lets go of the deepest first. So a node without
    users stands behind its children in the order of eviction, and the oldest is always a leaf.
    """

    def __init__(self) -> None:
        self._nodes: dict[bytes, Node] = {}
        self._idle: dict[bytes, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def num_idle(self) -> int:
        """Nodes that nobody holds: their pages can be evicted."""
        return len(self._idle)

    def depth(self, ids: Sequence[bytes], limit: int) -> int:
        """Return the length of the longest known prefix of ``ids[:limit]``. Pages.

        A node is only there if its parent is, so presence is monotone and bisection finds the end.
        """
        nodes = self._nodes
        low, high = 0, min(limit, len(ids))
        while low < high:
            middle = (low + high + 1) // 2
            if ids[middle - 1] in nodes:
                low = middle
            else:
                high = middle - 1
        return low

    def match(self, ids: Sequence[bytes], limit: int) -> list[Node]:
        """Return the nodes of the longest known prefix of ``ids[:limit]``; holds nothing."""
        nodes = self._nodes
        return [nodes[node_id] for node_id in ids[: self.depth(ids, limit)]]

    def hold(self, nodes: Sequence[Node]) -> None:
        """Keep ``nodes``, a path from a root, from eviction."""
        for node in nodes:
            if node.users == 0:
                del self._idle[node.id]
            node.users += 1

    def find(self, node_id: bytes) -> Node | None:
        """Return the node of a prefix; holds nothing."""
        return self._nodes.get(node_id)

    def insert(self, parent: Node | None, node_id: bytes, page: int, step: int) -> Node:
        """Make ``page``, which holds a prefix that is not known, findable; holds the node.

        Args:
            parent: The node before it, listed and held by the caller.
            node_id: Digest of the prefix that ends with this page.
            page: Where its keys and values are.
            step: Step that writes the last of them.
        """
        node = self._nodes[node_id] = Node(node_id, parent, page, step)
        return node

    def replace(self, node: Node, page: int, step: int) -> int:
        """Let an idle node be ``page`` from now on; holds the node and returns its old page."""
        assert node.users == 0, f"page {node.page} is in use, it cannot be replaced"
        self.hold((node,))
        old, node.page, node.written, node.last_step = node.page, page, step, 0
        return old

    def let_go(self, nodes: Sequence[Node], last_step: int) -> list[Node]:
        """Stop holding ``nodes``, a path in order from the root.

        Args:
            nodes: What :meth:`hold` and :meth:`insert` held.
            last_step: Last step that was launched with them.

        Returns:
            Withdrawn nodes that nobody holds any more.
        """
        orphans: list[Node] = []
        for node in reversed(nodes):
            assert node.users > 0, f"page {node.page} let go of more often than held"
            node.users -= 1
            if last_step > node.last_step:
                node.last_step = last_step
            if node.users:
                continue
            if node.is_listed:
                self._idle[node.id] = node
            else:
                orphans.append(node)
        return orphans

    def evict(self, count: int, settled: int) -> list[int]:
        """Forget the ``count`` least recently used idle nodes, all or none.

        Args:
            count: How many pages are wanted.
            settled: Last settled step; pages that a later one may touch stay.

        Returns:
            The pages, or none when there are fewer.
        """
        if count > len(self._idle):
            return []
        victims: list[Node] = []
        for node in self._idle.values():
            if node.last_step > settled or len(victims) == count:
                break
            victims.append(node)
        if len(victims) < count:
            return []
        for node in victims:
            self._forget(node)
        return [node.page for node in victims]

    def flush(self) -> list[Node]:
        """Forget every idle node and return them."""
        nodes = list(self._idle.values())
        for node in nodes:
            self._forget(node)
        return nodes

    def withdraw(self, nodes: Sequence[Node]) -> list[Node]:
        """Unlist ``nodes`` and all that follows them: what they hold is wrong.

        Returns:
            The idle ones among them; nobody knows their pages any more.
        """
        doomed = {id(node) for node in nodes}
        unused: list[Node] = []
        # Parents are listed before their children, so one pass finds all descendants.
        for node in list(self._nodes.values()):
            if id(node) not in doomed and (node.parent is None or id(node.parent) not in doomed):
                continue
            doomed.add(id(node))
            node.is_listed = False
            del self._nodes[node.id]
            if node.users == 0:
                del self._idle[node.id]
                unused.append(node)
        return unused

    def written_since(self, step: int) -> list[Node]:
        """Return the listed nodes that ``step`` or a later one writes."""
        return [node for node in self._nodes.values() if node.written >= step]

    def pages(self) -> list[int]:
        """Return the page of every listed node."""
        return [node.page for node in self._nodes.values()]

    def check(self) -> None:
        """Assert the tree's own rules. Costs a pass over all nodes: for tests."""
        order = {node_id: place for place, node_id in enumerate(self._idle)}
        for node_id, node in self._nodes.items():
            assert node.id == node_id, f"page {node.page} is listed under another id"
            assert node.is_listed, f"page {node.page} is withdrawn but listed"
            assert (node.users == 0) == (node_id in order), f"page {node.page} is idle wrongly"
            parent = node.parent
            if parent is None:
                continue
            assert self._nodes.get(parent.id) is parent, f"page {node.page} lost its parent"
            if node.users:
                assert parent.users, f"page {node.page} is held, its parent is not"
            elif parent.users == 0:
                assert order[node_id] < order[parent.id], f"page {node.page} outlives its parent"
        assert all(node_id in self._nodes for node_id in order), "an idle node is not listed"
        pages = self.pages()
        assert len(set(pages)) == len(pages), "two nodes have the same page"

    def _forget(self, node: Node) -> None:
        del self._idle[node.id]
        del self._nodes[node.id]
        node.is_listed = False
