"""The tree of a step: which of its rows share which prefix pages."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.wire.steps import TreeNodes

Members = list[int]


def depth_first(
    tables: Sequence[Sequence[int]], limits: Sequence[int], page_tokens: int
) -> tuple[list[int], TreeNodes]:
    """Order rows so that those with a common prefix are neighbours, and name the prefixes.

    Rows keep their order as far as that allows. Within the limits, equal entries at one index
    mean equal entries before it: a page holds what it holds after one prefix only.

    Args:
        tables: Page tables of the rows.
        limits: How many leading entries of each may be shared.
        page_tokens: Tokens a page holds.

    Returns:
        The rows' indexes in depth-first order, and the nodes, each before those below it.
    """
    order: list[int] = []
    row_begin: list[int] = []
    row_end: list[int] = []
    kv_begin: list[int] = []
    kv_end: list[int] = []
    stack: list[tuple[Members, int]] = [(list(range(len(tables))), 0)] if tables else []
    while stack:
        members, low = stack.pop()
        if len(members) == 1:
            order.append(members[0])
            continue
        high = _common_pages(tables, limits, members, low)
        if high > low:
            row_begin.append(len(order))
            row_end.append(len(order) + len(members))
            kv_begin.append(low * page_tokens)
            kv_end.append(high * page_tokens)
        # A row whose prefix ends here is a part of its own; pages are never negative.
        keys = [tables[each][high] if limits[each] > high else -1 - each for each in members]
        if len(set(keys)) == len(members):
            order += members
            continue
        parts: dict[int, Members] = {}
        for key, member in zip(keys, members, strict=True):
            parts.setdefault(key, []).append(member)
        stack.extend((part, high) for part in reversed(parts.values()))
    return order, TreeNodes(row_begin, row_end, kv_begin, kv_end)


def _common_pages(
    tables: Sequence[Sequence[int]], limits: Sequence[int], members: Members, low: int
) -> int:
    """Return how many leading pages all ``members`` share; ``low`` they are known to."""
    first = tables[members[0]]
    high = min([limits[member] for member in members])
    for member in members:
        if high <= low:
            return low
        table = tables[member]
        if table[high - 1] == first[high - 1]:
            continue
        below, above = low, high - 1
        while below < above:
            middle = (below + above + 1) // 2
            if table[middle - 1] == first[middle - 1]:
                below = middle
            else:
                above = middle - 1
        high = below
    return high
