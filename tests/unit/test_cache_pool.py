"""The page pool, the quarantine and the digests."""

import subprocess
import sys
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headstock.cache import PageCache, PagePool, RecentChains, chain_ids, child_id, root_id
from headstock.cache.pool import Quarantine
from headstock.errors import UnsupportedError
from headstock.wire.steps import NULL_PAGE, PageGroup


def test_the_null_page_is_never_handed_out() -> None:
    pool = PagePool(5)
    pages = pool.take(4)
    assert pages is not None
    assert NULL_PAGE not in pages
    pool.check()


def test_taking_is_all_or_none() -> None:
    pool = PagePool(5)
    assert pool.take(5) is None
    assert pool.num_free == 4


def test_given_back_pages_can_be_taken_again() -> None:
    pool = PagePool(3)
    pool.give_back(pool.take(2) or [])
    assert sorted(pool.take(2) or []) == [1, 2]


def test_a_pool_does_not_grow_with_what_it_has_handed_out() -> None:
    pool = PagePool(100)
    for _ in range(20_000):
        pool.give_back(pool.take(1) or [])
    assert sys.getsizeof(pool._free) < 8 * (4096 + 100) * 2  # pyright: ignore[reportPrivateUsage]
    pool.check()


def test_taking_a_page_does_not_move_the_others() -> None:
    pool = PagePool(10_000)
    for _ in range(100):
        pool.take(3)
    assert len(pool._free) == pool.num_total == 9_999  # pyright: ignore[reportPrivateUsage]


def test_giving_back_twice_is_caught() -> None:
    pool = PagePool(3)
    pages = pool.take(1) or []
    pool.give_back(pages)
    with pytest.raises(AssertionError, match="not taken"):
        pool.give_back(pages)


def test_quarantine_holds_pages_until_their_last_step_has_settled() -> None:
    quarantine = Quarantine()
    quarantine.put([7, 8], last_step=3)
    assert quarantine.settle(2) == []
    assert quarantine.settle(3) == [7, 8]
    assert quarantine.num_pages == 0


def test_a_prefix_has_one_name_however_it_is_cut() -> None:
    ids = chain_ids(root_id("a"), list(range(10)), 4)
    assert len(ids) == 2
    assert ids[1] == child_id(ids[0], [4, 5, 6, 7])


def test_namespaces_share_no_names() -> None:
    assert root_id("a") != root_id("b")
    assert chain_ids(root_id("a"), [1, 2], 1) != chain_ids(root_id("b"), [1, 2], 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("bc", "a"), ("c", "ab")),
        (("x", ""), ("", "x")),
        (("", "1:a"), ("a", "1:")),
        (("", ""), ("", "0")),
    ],
)
def test_parts_of_a_namespace_are_never_taken_for_each_other(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert root_id(*one) != root_id(*other)


def test_names_are_equal_in_every_process() -> None:
    code = (
        "from headstock.cache import chain_ids, root_id;"
        "print(chain_ids(root_id('x'), [1, 2, 3, 70000], 2)[-1].hex())"
    )
    run = [sys.executable, "-c", code]
    names = {subprocess.check_output(run, text=True).strip() for _ in range(2)}
    assert names == {chain_ids(root_id("x"), [1, 2, 3, 70000], 2)[-1].hex()}


def test_a_name_never_changes_between_versions() -> None:
    (name,) = chain_ids(root_id(""), [1, 2, 3, 4], 4)
    assert name.hex() == "d6d37eed0f9bd5475f77efed37ad07d5"


def test_a_group_of_an_unknown_kind_is_refused_with_a_reason() -> None:
    with pytest.raises(UnsupportedError, match="'encoder'"):
        PageCache([PageGroup("full", 4, 1, 8), PageGroup("encoder", 4, 1, 8)])


def test_groups_with_different_pages_are_refused_with_a_reason() -> None:
    with pytest.raises(UnsupportedError, match="4, 8 tokens"):
        PageCache([PageGroup("full", 4, 1, 8), PageGroup("window", 8, 1, 8, 16)])


@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.integers(1, 3), max_size=40)), max_size=12
    ),
    max_tokens=st.sampled_from([50, 1000]),
    page_tokens=st.sampled_from([1, 2, 3]),
)
def test_ids_of_prompts_that_begin_alike_are_those_of_each_alone(
    prompts: list[tuple[int, list[int]]], max_tokens: int, page_tokens: int
) -> None:
    chains = RecentChains(page_tokens, max_tokens)
    for common, tail in prompts:
        for namespace in ("a", "b"):
            tokens = array("I", [*range(common), *tail])
            root = root_id(namespace)
            assert chains.ids(root, tokens) == chain_ids(root, tokens, page_tokens)
