"""The tree of a step: order and nodes of rows that share pages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headstock.scheduler.writer import depth_first
from headstock.wire.steps import TreeNodes


def nodes_of(tree: TreeNodes) -> list[tuple[int, int, int, int]]:
    return list(zip(tree.row_begin, tree.row_end, tree.kv_begin, tree.kv_end, strict=True))


def test_rows_that_share_nothing_keep_their_order() -> None:
    order, tree = depth_first([[1], [2], [3]], [1, 1, 1], 4)
    assert order == [0, 1, 2]
    assert nodes_of(tree) == []


def test_rows_with_a_common_prefix_become_neighbours() -> None:
    order, tree = depth_first([[1, 5], [2], [1, 6]], [2, 1, 2], 4)
    assert order == [0, 2, 1]
    assert nodes_of(tree) == [(0, 2, 0, 4)]


def test_a_prefix_within_a_prefix_is_a_node_below_it() -> None:
    tables = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6]]
    order, tree = depth_first(tables, [4, 4, 3], 4)
    assert order == [0, 1, 2]
    assert nodes_of(tree) == [(0, 3, 0, 8), (0, 2, 8, 12)]


def test_nothing_is_shared_past_the_limits() -> None:
    _, tree = depth_first([[1, 2, 3], [1, 2, 3]], [1, 3], 4)
    assert nodes_of(tree) == [(0, 2, 0, 4)]


def test_a_row_that_ends_in_a_shared_prefix_has_no_part_below() -> None:
    order, tree = depth_first([[1], [1, 2], [1, 2]], [1, 2, 2], 4)
    assert order == [0, 1, 2]
    assert nodes_of(tree) == [(0, 3, 0, 4), (1, 3, 4, 8)]


def test_a_thousand_nested_prefixes_do_not_exhaust_the_stack() -> None:
    tables = [list(range(1, count + 2)) for count in range(1000)]
    order, tree = depth_first(tables, [len(table) for table in tables], 1)
    assert order == list(range(1000))
    assert len(nodes_of(tree)) == 999


@st.composite
def page_tables(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Tables in which, as in the cache, a page determines all that comes before it."""
    paths = draw(st.lists(st.lists(st.integers(0, 1), max_size=5), min_size=1, max_size=9))
    names: dict[tuple[int, ...], int] = {}
    tables = [
        [names.setdefault(tuple(path[: i + 1]), len(names) + 1) for i in range(len(path))]
        for path in paths
    ]
    limits = [draw(st.integers(0, len(table))) for table in tables]
    return tables, limits


@given(page_tables())
def test_every_shared_page_is_in_exactly_one_node_with_all_its_rows(
    case: tuple[list[list[int]], list[int]],
) -> None:
    tables, limits = case
    order, tree = depth_first(tables, limits, 1)
    assert sorted(order) == list(range(len(tables)))
    holders: dict[int, set[int]] = {}
    for row, (table, limit) in enumerate(zip(tables, limits, strict=True)):
        for page in table[:limit]:
            holders.setdefault(page, set()).add(row)
    shared = {page: rows for page, rows in holders.items() if len(rows) > 1}
    covered: dict[int, set[int]] = {}
    for row_begin, row_end, kv_begin, kv_end in nodes_of(tree):
        rows = set(order[row_begin:row_end])
        for page in tables[order[row_begin]][kv_begin:kv_end]:
            assert page not in covered, "a page is in two nodes"
            covered[page] = rows
    assert covered == shared
