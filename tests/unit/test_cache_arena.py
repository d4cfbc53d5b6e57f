"""Memory that groups share: slabs come and go by need."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstock.cache import PageCache, Tables
from headstock.cache.arena import Arena, ArenaPool
from headstock.errors import ConfigError
from headstock.wire.steps import PageGroup


def pools(num_slabs: int) -> tuple[ArenaPool, ArenaPool]:
    arena = Arena(num_slabs)
    return ArenaPool(arena, 4), ArenaPool(arena, 2)


def test_the_slab_of_the_null_pages_is_never_handed_out() -> None:
    first, second = pools(3)
    assert min([*(first.take(4) or []), *(second.take(2) or [])]) >= 2
    assert first.take(1) is None
    first.check()


def test_a_page_lies_in_the_slab_of_its_number() -> None:
    first, second = pools(5)
    one, other = first.take(5) or [], second.take(3) or []
    assert not {page // 4 for page in one} & {page // 2 for page in other}


def test_a_slab_whose_pages_are_all_free_goes_to_the_next_group() -> None:
    first, second = pools(2)
    pages = first.take(4) or []
    assert second.take(1) is None
    first.loosen(pages)
    assert second.take(1) is None
    first.give_back(pages)
    assert second.take(2) is not None


def test_taking_is_all_or_none() -> None:
    first, second = pools(3)
    second.take(1)
    assert first.take(5) is None
    assert first.num_free == 4


def test_giving_back_twice_is_caught() -> None:
    first, _ = pools(3)
    pages = first.take(2) or []
    first.loosen(pages[:1])
    first.give_back(pages[:1])
    with pytest.raises(AssertionError, match="was not taken"):
        first.give_back(pages[:1])


def cache_of(num_slabs: int, count: int = 3) -> PageCache:
    groups = [
        PageGroup("full", 2, 1, num_slabs * 4, slab_pages=4),
        PageGroup("window", 2, 1, num_slabs * 2, 4, slab_pages=2),
        PageGroup("state", 1, 1, num_slabs, slab_pages=1),
    ]
    return PageCache(groups[:count])


def move_in(cache: PageCache, num_tokens: int) -> Tables | None:
    hit = cache.no_hit()
    fresh = cache.take(cache.needs(hit, num_tokens))
    return None if fresh is None else cache.open(hit, fresh)


def test_allocation_is_all_or_none_over_the_groups() -> None:
    cache = cache_of(5)
    assert move_in(cache, 8) is not None
    assert move_in(cache, 2) is None
    assert cache.num_free == 1


def test_idle_pages_of_one_group_give_way_to_another() -> None:
    cache = cache_of(6, 2)
    tables = move_in(cache, 4)
    assert tables is not None
    ids = [b"first", b"second"]
    cache.publish(tables, ids, 2, 0)
    cache.release(tables, 0)
    assert cache.match(ids, 2).end == 2
    assert cache.groups[1].take(8) is not None
    assert cache.match(ids, 2).end == 0
    assert cache.groups[1].take(2) is not None
    assert cache.groups[1].take(1) is None


def test_pages_in_use_never_give_way() -> None:
    cache = cache_of(5)
    tables = move_in(cache, 8)
    assert tables is not None
    assert cache.groups[2].take(1) is not None
    assert cache.groups[2].take(1) is None


def test_the_longest_request_counts_all_groups() -> None:
    # Two slabs for window and state each at most leave two of four full pages of two tokens.
    assert cache_of(8).max_tokens == 2 * 4 * (7 - 3 - 1)


def test_a_cache_without_room_for_one_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="too small for one token"):
        cache_of(2)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 7), st.booleans()), max_size=40))
def test_no_page_is_lost_whatever_is_taken_and_given_back(
    moves: list[tuple[int, int, bool]],
) -> None:
    both = pools(6)
    taken: tuple[list[list[int]], list[list[int]]] = ([], [])
    for which, count, gives in moves:
        if gives and taken[which]:
            pages = taken[which].pop(0)
            both[which].loosen(pages)
            both[which].give_back(pages)
        elif (pages := both[which].take(count)) is not None:
            taken[which].append(pages)
        for pool, held in zip(both, taken, strict=True):
            pool.check()
            assert pool.num_taken == sum(map(len, held))
        owned = [{page // 4 for pages in taken[0] for page in pages}]
        owned.append({page // 2 for pages in taken[1] for page in pages})
        assert not owned[0] & owned[1], "two groups have one slab"
