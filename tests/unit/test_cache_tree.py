"""The prefix tree and the page cache around it: examples, and equality with a naive model."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headstock.cache import Node, PageCache, chain_ids, root_id
from headstock.wire.steps import PageGroup

PAGE = 2


def cache_of(num_pages: int) -> PageCache:
    return PageCache([PageGroup("full", PAGE, 1, num_pages + 1)])


def ids_of(tokens: list[int], namespace: str = "") -> list[bytes]:
    return chain_ids(root_id(namespace), tokens, PAGE)


def publish(cache: PageCache, tokens: list[int], step: int = 0) -> list[Node]:
    """Compute ``tokens`` from nothing, as one request would, and hold them."""
    ids = ids_of(tokens)
    path: list[Node] = []
    for node_id, page in zip(ids, cache.take(len(ids)) or [], strict=True):
        node = cache.publish(path[-1] if path else None, node_id, page, step)
        assert node is not None
        path.append(node)
    return path


def test_a_match_is_the_longest_known_prefix() -> None:
    cache = cache_of(8)
    path = publish(cache, [1, 2, 3, 4])
    assert cache.match(ids_of([1, 2, 3, 4, 5, 6]), 9) == path
    assert cache.match(ids_of([1, 2, 9, 9]), 9) == path[:1]
    assert cache.match(ids_of([9, 2, 3, 4]), 9) == []


def test_a_match_stays_within_its_limit() -> None:
    cache = cache_of(8)
    path = publish(cache, [1, 2, 3, 4])
    assert cache.match(ids_of([1, 2, 3, 4]), 1) == path[:1]


def test_a_released_prefix_stays_cached_until_its_pages_are_needed() -> None:
    cache = cache_of(2)
    cache.release(publish(cache, [1, 2, 3, 4]), [], 0)
    assert cache.num_idle == 2
    assert len(cache.match(ids_of([1, 2, 3, 4]), 2)) == 2
    assert cache.take(2) is not None
    assert cache.match(ids_of([1, 2, 3, 4]), 2) == []


def test_the_least_recently_used_leaf_is_evicted_first() -> None:
    cache = cache_of(4)
    cache.release(publish(cache, [1, 2, 3, 4]), [], 0)
    cache.release(publish(cache, [5, 6, 7, 8]), [], 0)
    cache.take(1)
    assert len(cache.match(ids_of([1, 2, 3, 4]), 2)) == 1
    assert len(cache.match(ids_of([5, 6, 7, 8]), 2)) == 2


def test_a_held_prefix_is_never_evicted() -> None:
    cache = cache_of(2)
    publish(cache, [1, 2, 3, 4])
    assert cache.take(1) is None


def test_eviction_is_all_or_none() -> None:
    cache = cache_of(3)
    cache.release(publish(cache, [1, 2]), [], 0)
    publish(cache, [3, 4])
    assert cache.take(3) is None
    assert cache.num_idle == 1


def test_a_page_of_a_step_in_flight_is_not_evicted() -> None:
    cache = cache_of(1)
    cache.release(publish(cache, [1, 2]), [], 5)
    assert cache.take(1) is None
    cache.settle(5)
    assert cache.take(1) is not None


def test_a_private_page_comes_back_when_its_last_step_has_settled() -> None:
    cache = cache_of(1)
    cache.release([], cache.take(1) or [], 5)
    assert cache.num_free == 0
    cache.settle(5)
    assert cache.num_free == 1


def test_a_recomputed_page_takes_the_place_of_an_idle_one() -> None:
    cache = cache_of(2)
    cache.release(publish(cache, [1, 2]), [], 0)
    (page,) = cache.take(1) or []
    node = cache.publish(None, ids_of([1, 2])[0], page, 1)
    assert node is not None
    assert node.page == page
    assert cache.num_free == 1
    cache.check([])


def test_a_recomputed_page_of_a_prefix_in_use_stays_private() -> None:
    cache = cache_of(2)
    publish(cache, [1, 2])
    (page,) = cache.take(1) or []
    assert cache.publish(None, ids_of([1, 2])[0], page, 1) is None
    cache.check([page])


def test_a_withdrawn_prefix_is_found_by_nobody_nor_what_follows_it() -> None:
    cache = cache_of(4)
    path = publish(cache, [1, 2, 3, 4, 5, 6])
    cache.withdraw(path[1:2])
    assert cache.match(ids_of([1, 2, 3, 4, 5, 6]), 3) == path[:1]
    cache.release(path, [], 0)
    assert (cache.num_idle, cache.num_free) == (1, 3)


def test_nothing_is_published_below_a_withdrawn_page() -> None:
    cache = cache_of(2)
    (node,) = publish(cache, [1, 2])
    cache.withdraw([node])
    (page,) = cache.take(1) or []
    assert cache.publish(node, ids_of([1, 2, 3, 4])[1], page, 1) is None


def test_flushing_keeps_what_requests_use() -> None:
    cache = cache_of(4)
    cache.release(publish(cache, [1, 2]), [], 0)
    held = publish(cache, [3, 4])
    assert cache.flush() == 1
    assert cache.match(ids_of([3, 4]), 1) == held
    assert cache.num_free == 3


def test_without_sharing_nothing_matches() -> None:
    cache = PageCache([PageGroup("full", PAGE, 1, 5)], is_sharing=False)
    publish(cache, [1, 2])
    assert cache.match(ids_of([1, 2]), 1) == []


@dataclass
class Known:
    """The naive model's entry of one prefix."""

    page: int
    users: int = 1
    released: int = 0


@dataclass
class Tenant:
    tokens: tuple[int, ...]
    path: list[Node]
    private: list[int]
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
        path = self.cache.match(ids, len(ids))
        names = [tuple(tokens[: (i + 1) * PAGE]) for i in range(len(ids))]
        matched = self.longest(names)
        assert [node.page for node in path] == [self.model[name].page for name in matched]
        self.cache.hold(path)
        for name in matched:
            self.model[name].users += 1
        pages = self.take(-(-len(tokens) // PAGE) - len(path))
        if pages is None:
            self.release(matched)
            self.cache.release(path, [], 0)
            return
        tenant = Tenant(tuple(tokens), path, pages, list(matched))
        self.tenants.append(tenant)
        for name, node_id in list(zip(names, ids, strict=True))[len(path) :]:
            page = tenant.private.pop(0)
            parent = path[-1] if path else None
            node = self.cache.publish(parent, node_id, page, 0)
            assert node is not None, "it would have been matched"
            path.append(node)
            self.model[name] = Known(page)
            tenant.names.append(name)

    @precondition(lambda self: self.tenants)
    @rule(data=st.data())
    def move_out(self, data: st.DataObject) -> None:
        tenant = self.tenants.pop(data.draw(st.integers(0, len(self.tenants) - 1)))
        self.release(tenant.names)
        self.cache.release(tenant.path, tenant.private, 0)

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
        self.cache.check([page for tenant in self.tenants for page in tenant.private])
        assert self.cache.num_idle == sum(known.users == 0 for known in self.model.values())
        for name in self.model:
            assert len(self.cache.match(ids_of(list(name)), 99)) == len(name) // PAGE

    def take(self, count: int) -> list[int] | None:
        """Take from the cache; the model evicts the least recently released leaves."""
        short = count - self.cache.num_free
        idle = [name for name, known in self.model.items() if known.users == 0]
        pages = self.cache.take(count)
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
