"""The prefix tree: which pages hold what belongs to which tokens after which prefix.

A node is one grain of tokens. Its id is chained to its parent's (:mod:`headstock.cache.digest`), so
one flat dictionary finds any node of any prefix. A node holds, for each page group, a page or a
tombstone (None): where a group's page was evicted, the node stays for what other groups, or the
nodes after it, hold. A listed node's ancestors are listed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

# A cache holds 100,000s of these, which the collector of cycles need not visit: who takes one off
# the tree breaks its cycles.


class CachedPage(msgspec.Struct, eq=False, gc=False):
    """A page of one group at a node.

    Attributes:
        node: Where it is found.
        page: Its number.
        written: Step that writes the last of it; later steps may read it.
        users: Requests that hold it.
        last_step: Last step launched by a user that has released it.
    """

    node: Node
    page: int
    written: int
    users: int = 1
    last_step: int = 0


class Node(msgspec.Struct, eq=False, gc=False):
    """One grain of tokens after one prefix.

    Attributes:
        id: Chained digest of the namespace and all tokens up to here.
        parent: The grain before; None for a prefix's first one.
        pages: A page or None, for each group.
        child: The last made of the listed nodes that follow it; None: nothing follows.
        older: The one that was made before it after the same parent, and so on.
        newer: The one that was made after it.
        is_listed: False once it is evicted or withdrawn: who uses its pages keeps them, but nothing
            finds them any more.
        is_withdrawn: A fault made it wrong; nothing may be listed after it.
    """

    id: bytes
    parent: Node | None
    pages: list[CachedPage | None]
    child: Node | None = None
    older: Node | None = None
    newer: Node | None = None
    is_listed: bool = True
    is_withdrawn: bool = False

    @property
    def is_in_use(self) -> bool:
        """Whether live requests hold a page of it."""
        return any(cached is not None and cached.users > 0 for cached in self.pages)

    def children(self) -> Iterator[Node]:
        """Yield the listed nodes that follow it. Links instead of a list: most have just one."""
        child = self.child
        while child is not None:
            following = child.older
            yield child
            child = following


class Hit(msgspec.Struct, eq=False):
    """What the tree has of a prefix.

    Attributes:
        end: Grains that are valid in every group.
        known: Grains that are listed at all: up to there another request had the same tokens.
        path: Nodes of the valid ones.
        pages: What a request that goes on from there reads, a group.
    """

    end: int = 0
    known: int = 0
    path: list[Node] = []
    pages: list[list[CachedPage]] = []


def num_in_use(path: Sequence[Node]) -> int:
    """Return the number of nodes of a path up to the last one that live requests use."""
    return next((end for end in range(len(path), 0, -1) if path[end - 1].is_in_use), 0)


class Loser(Protocol):
    """What the tree knows of a page group: a page of its that is found no more."""

    def lose(self, cached: CachedPage) -> None:
        """Take the page off its node, and free it where it has no users."""
        ...

    def lost(self, node: Node) -> None:
        """Note that the group's page at ``node`` is gone, and the node perhaps with it."""
        ...


class PrefixTree:
    """Finds nodes by what they hold.

    Args:
        groups: The page groups, in the order of a node's pages.
    """

    def __init__(self, groups: Sequence[Loser]) -> None:
        self._groups = groups
        self._num_groups = len(groups)
        self._nodes: dict[bytes, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def depth(self, ids: Sequence[bytes], limit: int) -> int:
        """Return how many nodes of ``ids[:limit]`` are listed, from the first on.

        A node is only listed if its parent is, so bisection finds the end.
        """
        nodes = self._nodes
        low, high = 0, min(limit, len(ids))
        if not high or ids[0] not in nodes:
            return 0
        while low < high:
            middle = (low + high + 1) // 2
            if ids[middle - 1] in nodes:
                low = middle
            else:
                high = middle - 1
        return low

    def path(self, ids: Sequence[bytes], count: int) -> list[Node]:
        """Return the nodes of ``ids[:count]``, all of them listed."""
        nodes = self._nodes
        return [nodes[node_id] for node_id in ids[:count]]

    def reach(self, path: list[Node], ids: Sequence[bytes], count: int) -> bool:
        """Extend ``path``, a request's nodes, to the first ``count`` of ``ids``.

        Nodes that were evicted meanwhile, for nothing was left at them, are listed again.

        Args:
            path: Changed in place.
            ids: Digests of the request's grains.
            count: How many nodes the path should have.

        Returns:
            Whether it has come so far; if not, a node before was withdrawn.
        """
        while path and not path[-1].is_listed:
            if path.pop().is_withdrawn:
                return False
        nodes = self._nodes
        while len(path) < count:
            node_id = ids[len(path)]
            node = nodes.get(node_id)
            if node is None:
                node = self.insert(path[-1] if path else None, node_id)
            path.append(node)
        return True

    def find(self, node_id: bytes) -> Node | None:
        """Return the listed node of a prefix."""
        return self._nodes.get(node_id)

    def insert(self, parent: Node | None, node_id: bytes) -> Node:
        """List a new node after ``parent``; the caller puts a page there, or a node after it."""
        pages: list[CachedPage | None] = [None] * self._num_groups
        if parent is None:
            node = Node(node_id, None, pages)
        else:
            older = parent.child
            node = parent.child = Node(node_id, parent, pages, None, older)
            if older is not None:
                older.newer = node
        self._nodes[node_id] = node
        return node

    def insert_chain(
        self, parent: Node | None, ids: Sequence[bytes], group: int, pages: Sequence[int], step: int
    ) -> tuple[list[Node], list[CachedPage]]:
        """List new nodes, one after another, each with a page of ``group``.

        Args:
            parent: What the first follows, whose child it is not yet.
            ids: Their ids.
            group: Whose pages these are.
            pages: A page for each.
            step: Step that writes the last of the pages.

        Returns:
            The nodes, and their pages, which their writer holds.
        """
        path: list[Node] = []
        held: list[CachedPage] = []
        nodes, num_groups = self._nodes, self._num_groups
        last: Node | None = None
        for node_id, page in zip(ids, pages, strict=True):
            if last is None:
                node = self.insert(parent, node_id)
            else:
                node = last.child = nodes[node_id] = Node(node_id, last, [None] * num_groups)
            cached = node.pages[group] = CachedPage(node, page, step)
            held.append(cached)
            path.append(node)
            last = node
        return path, held

    def unlist(self, node: Node) -> None:
        """Take ``node``, which has no children, out of the tree and free its idle pages."""
        node.is_listed = False
        del self._nodes[node.id]
        if node.newer is not None:
            node.newer.older = node.older
        elif node.parent is not None:
            node.parent.child = node.older
        if node.older is not None:
            node.older.newer = node.newer
        node.older = node.newer = None
        for group, cached in zip(self._groups, node.pages, strict=True):
            if cached is not None and cached.users == 0:
                group.lose(cached)

    def drop(self, node: Node) -> None:
        """Unlist ``node`` and all that follows it, the last first."""
        parent = node.parent
        for each in reversed(list(subtree(node))):
            self.unlist(each)
        for group in self._groups:
            group.lost(node)
        if parent is not None:
            self.forget_empty(parent)

    def forget_empty(self, node: Node) -> None:
        """Unlist ``node`` and those before it as far as they hold nothing and lead nowhere."""
        here: Node | None = node
        while here is not None and here.is_listed and here.child is None and not any(here.pages):
            self.unlist(here)
            here = here.parent

    def withdraw(self, nodes: Sequence[Node]) -> None:
        """Unlist ``nodes`` and all that follows them for good: what they hold is wrong."""
        for node in nodes:
            node.is_withdrawn = True
            if not node.is_listed:
                continue
            for each in list(subtree(node)):
                each.is_withdrawn = True
            self.drop(node)

    def written_since(self, step: int) -> list[Node]:
        """Return the listed nodes at which ``step`` or a later one writes a page."""
        return [
            node
            for node in self._nodes.values()
            if any(cached is not None and cached.written >= step for cached in node.pages)
        ]

    def clear(self) -> None:
        """Forget every node, so that nothing keeps their memory."""
        for node in self._nodes.values():
            node.parent = node.child = node.older = node.newer = None
            node.pages.clear()
        self._nodes.clear()

    def pages(self, group: int) -> list[CachedPage]:
        """Return every page of ``group`` that is found."""
        found = [node.pages[group] for node in self._nodes.values()]
        return [cached for cached in found if cached is not None]

    def check(self) -> None:
        """Assert the tree's own rules. Costs a pass over all nodes: for tests."""
        for node_id, node in self._nodes.items():
            assert node.id == node_id, "a node is listed under another id"
            assert node.is_listed, "a node is unlisted but found"
            assert not node.is_withdrawn, "a withdrawn node is found"
            assert node.child or any(node.pages), "a node holds nothing and leads nowhere"
            for child in node.children():
                assert child.parent is node
                assert self._nodes.get(child.id) is child, "a child is not listed"
            parent = node.parent
            if parent is not None:
                assert self._nodes.get(parent.id) is parent, "a node lost its parent"
                assert node in list(parent.children())


def subtree(node: Node) -> Iterator[Node]:
    """Yield ``node`` and all that follows it, each after its parent."""
    stack = [node]
    while stack:
        here = stack.pop()
        yield here
        stack.extend(here.children())
