"""Attention over the tree equals attention over the rows, whatever the tree."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from triton_here import HAS_GPU, Here

from headstock.ops.cases.attention import attend, dense_attention, filled_pages, make_inputs
from headstock.ops.cases.attention import plain_spec as small_spec
from headstock.ops.cases.batches import make_step
from headstock_triton.attention.provider import PagedAttention, Tuning

PAGE = 16
EAGER = Tuning(min_gain=1, node_min_chunk=64)
"""Takes every node that saves anything, and cuts them small."""


def random_tree(rng: random.Random, num_rows: int) -> tuple[list, list]:
    """Return rows and shared prefixes: nested intervals of rows, deeper ones longer."""
    shared: list[tuple[int, int, int]] = []

    def grow(begin: int, end: int, kv: int, depth: int) -> None:
        if end - begin < 2 or depth == 4 or rng.random() < 0.2:
            return
        kv += PAGE * rng.randint(1, 6)
        shared.append((begin, end, kv))
        cut = rng.randint(begin, end)
        grow(begin, cut, kv, depth + 1)
        grow(cut, end, kv, depth + 1)

    cut = rng.randint(0, num_rows)
    grow(0, cut, 0, 0)
    grow(cut, num_rows, 0, 0)
    rows = []
    for row in range(num_rows):
        covered = max([kv for begin, end, kv in shared if begin <= row < end], default=0)
        queries = rng.choice([1, 1, 1, 3])
        rows.append((queries, covered + queries + rng.randint(0, 40)))
    return rows, shared


def outcome(rows, shared, tuning, *, has_tree, dtype=torch.float32, **changes):
    spec = replace(small_spec(dtype, PAGE), max_tokens=256, **changes)
    step = make_step(rows, PAGE, Here.torch_device, shared=shared, num_padding_rows=2)
    inputs = make_inputs(spec, step, Here.torch_device, shared=shared)
    provider = PagedAttention(spec, Here(), tuning)
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    if not has_tree:
        step.batch.counts[2] = 0
    return provider, attend(provider, kv, step, inputs), dense_attention(spec, rows, inputs)


@pytest.mark.parametrize("seed", range(60 if HAS_GPU else 3))
def test_random_trees_change_nothing(seed):
    rng = random.Random(seed)
    rows, shared = random_tree(rng, rng.randint(2, 24 if HAS_GPU else 9))
    _, out, right = outcome(rows, shared, EAGER, has_tree=True)
    torch.testing.assert_close(out[: len(right)].double(), right, rtol=1e-4, atol=1e-5)


def test_a_node_is_read_once_for_its_rows():
    rows, shared = [(1, 129)] * 4, [(0, 4, 128)]
    provider, _, _ = outcome(rows, shared, EAGER, has_tree=True)
    tails, nodes, _ = provider._totals.tolist()
    assert (tails, nodes) == (4, 2)
    lengths = provider._tail_items[:tails]
    assert (lengths[:, 2] - lengths[:, 1]).tolist() == [1, 1, 1, 1]


def test_a_node_that_saves_too_little_is_left_out():
    provider, _, _ = outcome([(1, 17)] * 2, [(0, 2, 16)], Tuning(min_gain=17), has_tree=True)
    assert provider._totals.tolist()[1] == 0


def test_prefill_rows_under_a_node_are_left_to_themselves():
    rows, shared = [(1, 70), (6, 70), (1, 90)], [(0, 3, 64)]
    _, out, right = outcome(rows, shared, EAGER, has_tree=True)
    torch.testing.assert_close(out[: len(right)].double(), right, rtol=1e-4, atol=1e-5)


def test_nodes_past_the_capacity_are_dropped_by_gain():
    rows, shared = [(1, 200 + i) for i in range(8)], [(0, 8, 64), (0, 8, 128), (0, 8, 192)]
    tuning = replace(EAGER, node_min_chunk=16)
    provider, out, right = outcome(rows, shared, tuning, has_tree=True, max_rows=10)
    assert provider._node_partials < 8 * 192 // 16
    torch.testing.assert_close(out[: len(right)].double(), right, rtol=1e-4, atol=1e-5)


def test_without_tree_the_result_is_the_same():
    rows, shared = [(1, 100 + i) for i in range(5)], [(0, 5, 96)]
    _, with_tree, _ = outcome(rows, shared, EAGER, has_tree=True)
    _, without, _ = outcome(rows, shared, EAGER, has_tree=False)
    torch.testing.assert_close(with_tree[:5], without[:5], rtol=1e-4, atol=1e-5)


def test_more_rows_than_an_item_holds():
    rows, shared = [(1, 81 + i) for i in range(9)], [(0, 9, 80)]
    tuning = replace(EAGER, node=(16, 16, 4, 2))
    _, out, right = outcome(rows, shared, tuning, has_tree=True, num_heads=8)
    torch.testing.assert_close(out[: len(right)].double(), right, rtol=1e-4, atol=1e-5)


def test_pages_may_be_narrower_than_activations():
    rows, shared = [(1, 100), (1, 70), (6, 90)], [(0, 2, 64)]
    _, out, right = outcome(rows, shared, EAGER, has_tree=True, kv_dtype=torch.float16)
    torch.testing.assert_close(out[: len(right)].double(), right, rtol=5e-3, atol=2e-3)
