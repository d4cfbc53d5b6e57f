"""The tree's own rules, node by node, with groups that only note what they lose."""

from __future__ import annotations

import pytest

from headstock.cache.arena import Arena, ArenaPool
from headstock.cache.tree import CachedPage, Node, PrefixTree, num_in_use, subtree


class Notes:
    """A page group that notes which pages and nodes it lost."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.nodes: list[bytes] = []

    def lose(self, cached: CachedPage) -> None:
        self.pages.append(cached.page)

    def lost(self, node: Node) -> None:
        self.nodes.append(node.id)


def tree_of(names: bytes, users: int = 0) -> tuple[PrefixTree, Notes, list[Node]]:
    """Return a tree with one path, a node for each byte, its group and the path."""
    group = Notes()
    tree = PrefixTree([group])
    path, held = tree.insert_chain(
        None, [bytes([each]) for each in names], 0, list(range(1, len(names) + 1)), 3
    )
    for cached in held:
        cached.users = users
    return tree, group, path


def test_a_node_is_in_use_while_a_request_holds_a_page_of_it() -> None:
    _, _, (node,) = tree_of(b"a")
    assert not node.is_in_use
    page = node.pages[0]
    assert page is not None
    page.users = 1
    assert node.is_in_use
    node.pages[0] = None
    assert not node.is_in_use


def test_a_path_is_in_use_up_to_the_last_node_that_is() -> None:
    _, _, path = tree_of(b"abcd")
    assert num_in_use(path) == 0
    page = path[2].pages[0]
    assert page is not None
    page.users = 1
    assert num_in_use(path) == 3


def test_the_nodes_that_follow_one_are_told_newest_first() -> None:
    tree, _, (first,) = tree_of(b"a")
    others = [tree.insert(first, name) for name in (b"x", b"y", b"z")]
    assert list(first.children()) == others[::-1]
    assert {node.id for node in subtree(first)} == {b"a", b"x", b"y", b"z"}


@pytest.mark.parametrize("gone", [b"x", b"y", b"z"])
def test_a_node_leaves_from_between_its_neighbours(gone: bytes) -> None:
    tree, _, (first,) = tree_of(b"a")
    for name in (b"x", b"y", b"z"):
        tree.insert(first, name)
    node = tree.find(gone)
    assert node is not None
    tree.unlist(node)
    assert not node.is_listed
    assert tree.find(gone) is None
    assert [each.id for each in first.children()] == [n for n in (b"z", b"y", b"x") if n != gone]


def test_a_dropped_node_takes_what_follows_it_along_and_frees_idle_pages_only() -> None:
    tree, group, path = tree_of(b"abc")
    page = path[1].pages[0]
    assert page is not None
    page.users = 1
    tree.drop(path[1])
    assert [tree.find(node.id) is not None for node in path] == [True, False, False]
    assert group.pages == [3]
    assert group.nodes == [b"b"]


def test_nodes_that_hold_nothing_and_lead_nowhere_go() -> None:
    tree, _, path = tree_of(b"abc")
    path[0].pages[0] = path[1].pages[0] = None
    tree.forget_empty(path[1])
    assert len(tree) == 3  # a node with a page follows
    tree.drop(path[2])
    assert len(tree) == 0


def test_a_node_with_a_page_stays_when_what_followed_it_goes() -> None:
    tree, _, path = tree_of(b"abc")
    path[1].pages[0] = None
    tree.drop(path[2])
    assert [tree.find(node.id) is not None for node in path] == [True, False, False]
    tree.check()


def test_a_path_does_not_reach_past_a_withdrawn_node() -> None:
    tree, _, path = tree_of(b"ab", users=1)
    ids = [b"a", b"b", b"c"]
    tree.withdraw(path[1:])
    assert not tree.reach(list(path), ids, 3)
    assert tree.find(b"c") is None


def test_a_path_is_listed_again_from_where_it_was_evicted() -> None:
    tree, _, path = tree_of(b"abc")
    tree.drop(path[1])
    again = list(path)
    assert tree.reach(again, [b"a", b"b", b"c", b"d"], 4)
    assert [node.id for node in again] == [b"a", b"b", b"c", b"d"]
    assert again[0] is path[0]
    assert again[1] is not path[1]
    assert all(node.is_listed for node in again)
    assert again[3].parent is again[2]


def test_what_follows_a_withdrawn_node_is_withdrawn() -> None:
    tree, _, path = tree_of(b"abc", users=1)
    tree.withdraw(path[1:2])
    assert [node.is_withdrawn for node in path] == [False, True, True]


def test_nodes_are_found_by_the_step_that_writes_them() -> None:
    tree, _, path = tree_of(b"a")
    assert tree.written_since(3) == path
    assert tree.written_since(4) == []


def test_the_depth_of_a_path_is_where_its_nodes_end() -> None:
    tree, _, _ = tree_of(b"abcde")
    ids = [bytes([each]) for each in b"abcdefgh"]
    assert [tree.depth(ids, limit) for limit in range(9)] == [0, 1, 2, 3, 4, 5, 5, 5, 5]
    assert tree.depth([b"z", *ids], 9) == 0


def test_a_page_that_is_bound_again_keeps_its_slab() -> None:
    pool = ArenaPool(Arena(3), 4)
    pages = pool.take(1) or []
    pool.loosen(pages)
    slab = pages[0] // 4
    assert pool.is_loose(slab)
    pool.bind(pages[0])
    assert not pool.is_loose(slab)
    pool.check()
    pool.loosen(pages)
    assert pool.is_loose(slab)
    pool.give_back(pages)
    assert pool.num_taken == 0
