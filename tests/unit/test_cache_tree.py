"""The prefix tree and the page cache around it: examples, and equality with a naive model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headstock.cache import PageCache, Tables, chain_ids, root_id
from headstock.wire.steps import PageGroup

PAGE = 2


def cache_of(num_pages: int, **fields: object) -> PageCache:
    return PageCache([PageGroup("full", PAGE, 1, num_pages + 1)], **fields)


def ids_of(tokens: list[int], namespace: str = "") -> list[bytes]:
    return chain_ids(root_id(namespace), tokens, PAGE)


def end_of(cache: PageCache, tokens: list[int], limit: int = 99) -> int:
    """Return how many grains of ``tokens`` are found."""
    end = cache.match(ids_of(tokens), limit).end
    assert cache.depth(ids_of(tokens), limit) == end
    return end


def move_in(cache: PageCache, tokens: list[int], *, shares: bool = True) -> Tables | None:
    """Give a request its pages; None when there are not enough."""
    hit = cache.match(ids_of(tokens), len(tokens)) if shares else cache.no_hit()
    cache.hold(hit)
    fresh = cache.take(cache.needs(hit, len(tokens)))
    if fresh is None:
        cache.let_go(hit)
        return None
    return cache.open(hit, fresh)


def publish(cache: PageCache, tokens: list[int], step: int = 0, *, shares: bool = True) -> Tables:
    """Compute ``tokens``, as one request would, and hold them."""
    tables = move_in(cache, tokens, shares=shares)
    assert tables is not None
    ids = ids_of(tokens)
    cache.publish(tables, ids, len(ids), step)
    return tables


def test_a_match_is_the_longest_known_prefix() -> None:
    cache = cache_of(8)
    publish(cache, [1, 2, 3, 4])
    assert end_of(cache, [1, 2, 3, 4, 5, 6]) == 2
    assert end_of(cache, [1, 2, 9, 9]) == 1
    assert end_of(cache, [9, 2, 3, 4]) == 0


def test_a_match_stays_within_its_limit() -> None:
    cache = cache_of(8)
    publish(cache, [1, 2, 3, 4])
    assert end_of(cache, [1, 2, 3, 4], 1) == 1


def test_a_hit_has_the_pages_of_who_computed_it() -> None:
    cache = cache_of(8)
    first, second = publish(cache, [1, 2, 3, 4]), publish(cache, [1, 2, 3, 4, 5, 6])
    assert second.tokens[0].pages[:2] == first.tokens[0].pages


def test_a_released_prefix_stays_cached_until_its_pages_are_needed() -> None:
    cache = cache_of(2)
    cache.release(publish(cache, [1, 2, 3, 4]), 0)
    assert cache.num_idle == 2
    assert end_of(cache, [1, 2, 3, 4]) == 2
    assert cache.take([2]) is not None
    assert end_of(cache, [1, 2, 3, 4]) == 0


def test_the_least_recently_used_leaf_is_evicted_first() -> None:
    cache = cache_of(4)
    cache.release(publish(cache, [1, 2, 3, 4]), 0)
    cache.release(publish(cache, [5, 6, 7, 8]), 0)
    cache.take([1])
    assert end_of(cache, [1, 2, 3, 4]) == 1
    assert end_of(cache, [5, 6, 7, 8]) == 2


def test_evicting_a_page_takes_no_longer_in_a_large_cache() -> None:
    def seconds(num_pages: int) -> float:
        cache = cache_of(num_pages)
        for first in range(0, num_pages, 64):
            cache.release(publish(cache, list(range(2 * first, 2 * first + 128))), 0)
        assert cache.take([num_pages * 3 // 4]) is not None
        begin_s = time.process_time()
        for _ in range(num_pages // 8):
            assert cache.take([1]) is not None
        return (time.process_time() - begin_s) / num_pages

    least = [min(seconds(size) for _ in range(3)) for size in (1_024, 65_536)]
    assert least[1] < 4 * least[0]


def test_a_held_prefix_is_never_evicted() -> None:
    cache = cache_of(2)
    publish(cache, [1, 2, 3, 4])
    assert cache.take([1]) is None


def test_eviction_is_all_or_none() -> None:
    cache = cache_of(3)
    cache.release(publish(cache, [1, 2]), 0)
    publish(cache, [3, 4])
    assert cache.take([3]) is None
    assert cache.num_idle == 1


def test_a_page_of_a_step_in_flight_is_not_evicted() -> None:
    cache = cache_of(1)
    cache.release(publish(cache, [1, 2]), 5)
    assert cache.take([1]) is None
    cache.settle(5)
    assert cache.take([1]) is not None


def test_a_private_page_comes_back_when_its_last_step_has_settled() -> None:
    cache = cache_of(1)
    tables = move_in(cache, [1])
    assert tables is not None
    cache.release(tables, 5)
    assert cache.num_free == 0
    cache.settle(5)
    assert cache.num_free == 1


def test_a_recomputed_page_takes_the_place_of_an_idle_one() -> None:
    cache = cache_of(2)
    cache.release(publish(cache, [1, 2]), 0)
    tables = publish(cache, [1, 2], 1, shares=False)
    assert cache.match(ids_of([1, 2]), 1).pages[0][0].page == tables.tokens[0].pages[0]
    assert cache.num_free == 1
    cache.check([tables])


def test_a_recomputed_page_of_a_prefix_in_use_stays_its_writers_own() -> None:
    cache = cache_of(2)
    first, second = publish(cache, [1, 2]), publish(cache, [1, 2], shares=False)
    assert second.tokens[0].private() == second.tokens[0].pages
    cache.check([first, second])


def test_what_follows_a_twin_is_found() -> None:
    cache = cache_of(4)
    first, second = publish(cache, [1, 2]), publish(cache, [1, 2, 3, 4], shares=False)
    assert end_of(cache, [1, 2, 3, 4]) == 2
    assert second.num_shared == 0
    cache.check([first, second])
    cache.release(first, 0)
    cache.release(second, 0)
    assert (cache.num_idle, cache.num_free) == (2, 2)


def test_a_twin_that_no_other_request_uses_can_be_given_up() -> None:
    cache = cache_of(3)
    first, second = publish(cache, [1, 2]), publish(cache, [1, 2, 3, 4], shares=False)
    assert not cache.give_up_twins(second, 0)
    cache.release(first, 0)
    assert cache.num_free == 0
    assert cache.give_up_twins(second, 0)
    assert cache.num_free == 1
    cache.check([second])


def test_a_withdrawn_prefix_is_found_no_more_nor_what_follows_it() -> None:
    cache = cache_of(4)
    tables = publish(cache, [1, 2, 3, 4, 5, 6])
    cache.withdraw(tables.path[1:2])
    assert end_of(cache, [1, 2, 3, 4, 5, 6]) == 1
    cache.check([tables])
    cache.release(tables, 0)
    assert (cache.num_idle, cache.num_free) == (1, 3)


def test_nothing_is_published_below_a_withdrawn_page() -> None:
    cache = cache_of(2)
    tables = move_in(cache, [1, 2, 3, 4])
    assert tables is not None
    ids = ids_of([1, 2, 3, 4])
    cache.publish(tables, ids, 1, 0)
    cache.withdraw(tables.path)
    assert not cache.publish(tables, ids, 2, 1)
    assert end_of(cache, [1, 2, 3, 4]) == 0


def test_flushing_keeps_what_requests_use() -> None:
    cache = cache_of(4)
    cache.release(publish(cache, [1, 2]), 0)
    publish(cache, [3, 4])
    assert cache.flush() == 1
    assert end_of(cache, [3, 4]) == 1
    assert cache.num_free == 3


def test_without_sharing_nothing_matches() -> None:
    cache = cache_of(4, is_sharing=False)
    publish(cache, [1, 2])
    assert end_of(cache, [1, 2]) == 0


# Windows and states: presence is not monotone.


def groups_cache(*groups: PageGroup) -> PageCache:
    return PageCache(list(groups))


def window_of(size: int, num_pages: int = 40) -> PageGroup:
    return PageGroup("window", PAGE, 1, num_pages, size)


FULL = PageGroup("full", PAGE, 1, 40)
STATE = PageGroup("state", 1, 1, 40)


def evict_at(cache: PageCache, group: int, tokens: list[int], grain: int) -> None:
    """Evict the page of ``group`` at one grain, as if it were the least recently used."""
    node = cache.match(ids_of(tokens), 0).path or cache._tree.path(ids_of(tokens), grain + 1)
    cached = node[grain].pages[group]
    assert cached is not None
    cache.groups[group].evict(cached)


def test_a_window_needs_only_its_last_tokens() -> None:
    cache = groups_cache(FULL, window_of(4))
    tokens = list(range(20))
    cache.release(publish_by_chunks(cache, tokens), 0)
    evict_at(cache, 1, tokens, 2)
    assert end_of(cache, tokens) == 10
    assert end_of(cache, tokens, 4) == 2


def test_groups_are_asked_in_turn_until_all_agree() -> None:
    cache = groups_cache(FULL, window_of(4), STATE)
    tokens = list(range(20))
    tables = publish_by_chunks(cache, tokens, [4, 6, 8])
    cache.release(tables, 0)
    evict_at(cache, 1, tokens, 7)
    assert end_of(cache, tokens) == 6
    evict_at(cache, 1, tokens, 5)
    assert end_of(cache, tokens) == 4


def test_what_nothing_reaches_any_more_is_freed_with_what_was_evicted() -> None:
    cache = groups_cache(FULL, window_of(7))
    tokens = list(range(20))
    cache.release(publish_by_chunks(cache, tokens), 0)
    before = cache.groups[1].num_idle
    evict_at(cache, 1, tokens, 5)
    # Rows of 0 to 4 and 6 to 9 are left: both are a window long, or begin the prompt.
    assert cache.groups[1].num_idle == before - 1
    evict_at(cache, 1, tokens, 8)
    # 6, 7 and 9 lie in rows of two and one; a window reads three.
    assert cache.groups[1].num_idle == 5
    cache.check([])


def test_an_evicted_full_page_takes_the_other_groups_pages_along() -> None:
    cache = groups_cache(FULL, window_of(4), STATE)
    tokens = list(range(8))
    cache.release(publish_by_chunks(cache, tokens, [4]), 0)
    evict_at(cache, 0, tokens, 3)
    assert [group.num_idle for group in cache.groups] == [3, 3, 0]
    cache.check([])


def publish_by_chunks(
    cache: PageCache, tokens: list[int], checkpoints: list[int] | None = None
) -> Tables:
    """Compute ``tokens`` grain by grain, and keep the state after some of them."""
    tables = move_in(cache, tokens, shares=False)
    assert tables is not None
    ids = ids_of(tokens)
    for grain in range(len(ids)):
        end = cache.extend(tables, grain * PAGE, (grain + 1) * PAGE, 0)
        assert end == (grain + 1) * PAGE
        for table in tables.states:
            if table.is_turning:
                _, read = table.turn()
                if read is not None:
                    cache.states[0].let_go((read,), 0)
        cache.publish(tables, ids, grain + 1, 0)
        if checkpoints and grain + 1 in checkpoints:
            assert cache.checkpoint(tables, ids, grain + 1, 0)
    return tables


@given(
    present=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=14),
    size=st.integers(2, 9),
)
def test_a_match_equals_trying_every_end(present: list[tuple[bool, bool]], size: int) -> None:
    cache = groups_cache(FULL, window_of(size), STATE)
    tokens = list(range(PAGE * len(present)))
    tables = publish_by_chunks(
        cache, tokens, [n + 1 for n, (_, kept) in enumerate(present) if kept]
    )
    path = list(tables.path)
    cache.release(tables, 0)
    for node, (has_window, _) in zip(path, present, strict=True):
        if not has_window and node.pages[1] is not None:
            cache.groups[1].evict(node.pages[1])

    def is_valid(end: int) -> bool:
        first = max(0, PAGE * end - size + 1) // PAGE
        has_window = all(path[index].pages[1] for index in range(first, end))
        return end == 0 or (has_window and path[end - 1].pages[2] is not None)

    for limit in range(len(present) + 1):
        expected = max(end for end in range(limit + 1) if is_valid(end))
        assert end_of(cache, tokens, limit) == expected
    # Every page that is left in the window group is read by a hit of some length.
    ends = range(len(present) + 1)
    for index, node in enumerate(path):
        if node.pages[1] is not None:
            assert any(
                max(0, PAGE * end - size + 1) // PAGE <= index < end
                and all(
                    path[at].pages[1] for at in range(max(0, PAGE * end - size + 1) // PAGE, end)
                )
                for end in ends
            ), "a page is left that nothing reaches"
    cache.check([])


@dataclass
class Known:
    """The naive model's entry of one prefix."""

    page: int
    users: int = 1
    released: int = 0


@dataclass
class Tenant:
    tables: Tables
    names: list[tuple[int, ...]] = field(default_factory=list)


class TreeMachine(RuleBasedStateMachine):
    """The tree against a dictionary from token tuples to pages."""

    @initialize(num_pages=st.integers(2, 14))
    def start(self, num_pages: int) -> None:
        self.cache = cache_of(num_pages)
        self.model: dict[tuple[int, ...], Known] = {}
        self.tenants: list[Tenant] = []
        self.clock = 0

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=10))
    def move_in(self, tokens: list[int]) -> None:
        ids = ids_of(tokens)
        hit = self.cache.match(ids, len(ids))
        names = [tuple(tokens[: (i + 1) * PAGE]) for i in range(len(ids))]
        matched = self.longest(names)
        assert [each.page for each in hit.pages[0]] == [self.model[name].page for name in matched]
        self.cache.hold(hit)
        for name in matched:
            self.model[name].users += 1
        pages = self.take(self.cache.needs(hit, len(tokens))[0])
        if pages is None:
            self.release(matched)
            self.cache.let_go(hit)
            return
        tables = self.cache.open(hit, [pages])
        self.tenants.append(Tenant(tables, names))
        self.cache.publish(tables, ids, len(ids), 0)
        assert not tables.is_private, "it would have been matched"
        for name, page in list(zip(names, tables.tokens[0].pages, strict=False))[len(matched) :]:
            self.model[name] = Known(page)

    @precondition(lambda self: self.tenants)
    @rule(data=st.data())
    def move_out(self, data: st.DataObject) -> None:
        tenant = self.tenants.pop(data.draw(st.integers(0, len(self.tenants) - 1)))
        self.release(tenant.names)
        self.cache.release(tenant.tables, 0)

    @rule()
    def flush(self) -> None:
        idle = [name for name, known in self.model.items() if known.users == 0]
        assert self.cache.flush() == len(idle)
        for name in idle:
            del self.model[name]

    @invariant()
    def both_agree(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check([tenant.tables for tenant in self.tenants])
        assert self.cache.num_idle == sum(known.users == 0 for known in self.model.values())
        for name in self.model:
            assert end_of(self.cache, list(name)) == len(name) // PAGE

    def take(self, count: int) -> list[int] | None:
        """Take from the cache; the model evicts the least recently released leaves."""
        short = count - self.cache.num_free
        idle = [name for name, known in self.model.items() if known.users == 0]
        taken = self.cache.take([count])
        pages = None if taken is None else taken[0]
        assert (pages is None) == (short > len(idle))
        for _ in range(short if pages is not None else 0):
            leaves = [
                name
                for name, known in self.model.items()
                if known.users == 0 and not any(self.is_child(other, name) for other in self.model)
            ]
            del self.model[min(leaves, key=lambda name: self.model[name].released)]
        return pages

    def release(self, names: list[tuple[int, ...]]) -> None:
        for name in reversed(names):
            self.clock += 1
            known = self.model[name]
            known.users -= 1
            known.released = self.clock

    def longest(self, names: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        known: list[tuple[int, ...]] = []
        for name in names:
            if name not in self.model:
                break
            known.append(name)
        return known

    @staticmethod
    def is_child(other: tuple[int, ...], name: tuple[int, ...]) -> bool:
        return len(other) == len(name) + PAGE and other[: len(name)] == name


TreeMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTreeEqualsANaiveModel = TreeMachine.TestCase
