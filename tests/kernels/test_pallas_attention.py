"""The Pallas kernel, interpreted, against dense attention; and compiled for TPUs that are not here.

Neither is run on a TPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="needs jax: make tpu-test", exc_type=ImportError)

from headstock_tpu.pallas_attention import paged_attention  # noqa: E402

FEATURES = [
    {},
    {"window": 20},
    {"soft_cap": 5.0, "has_sinks": True},
]


def make(rows, heads, kv_heads, head_dim, page_size):
    """Return a step; pages that no token was written to hold not-a-numbers."""
    draw = np.random.default_rng(0)
    queries, lengths = (np.array(column, np.int32) for column in zip(*rows, strict=True))
    starts = np.concatenate([[0], np.cumsum(queries)]).astype(np.int32)
    num_pages = -(-int(lengths.max()) // page_size)
    table = draw.permutation(len(rows) * num_pages).reshape(len(rows), num_pages) + 1
    shape = (table.size + 1, 2, kv_heads, page_size, head_dim)
    kv = np.full(shape, np.nan, np.float32)
    for row, length in enumerate(lengths):
        for token in range(length):
            page = table[row, token // page_size]
            kv[page, :, :, token % page_size] = draw.normal(size=(2, kv_heads, head_dim))
    q = draw.normal(size=(starts[-1], heads, head_dim)).astype(np.float32)
    return q, kv, table.astype(np.int32), starts, lengths


def dense(q, kv, table, starts, lengths, sinks, window=None, soft_cap=None):
    out, per_head = np.zeros_like(q), q.shape[1] // kv.shape[2]
    for row, length in enumerate(lengths):
        k, v = (np.concatenate(kv[table[row], i], axis=1)[:, :length] for i in (0, 1))
        for token in range(starts[row], starts[row + 1]):
            position = length - (starts[row + 1] - token)
            seen = np.arange(max(0, position - window + 1) if window else 0, position + 1)
            for head in range(q.shape[1]):
                scores = k[head // per_head, seen] @ q[token, head] * q.shape[2] ** -0.5
                if soft_cap:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores)
                total = weights.sum() + (0 if sinks is None else np.exp(sinks[head]))
                out[token, head] = weights / total @ v[head // per_head, seen]
    return out


@pytest.mark.parametrize("features", FEATURES, ids=["plain", "window", "cap-sinks"])
@pytest.mark.parametrize(
    ("rows", "heads"),
    [([(1, 5), (1, 40), (1, 150)], (4, 2)), ([(7, 7), (1, 17), (20, 48), (1, 1)], (9, 3))],
    ids=["decode", "mixed"],
)
def test_it_equals_dense_attention(rows, heads, features):
    step = make(rows, *heads, 64, 16)
    given = dict(features)
    sinks = np.linspace(-1, 2, heads[0], dtype=np.float32) if given.pop("has_sinks", 0) else None
    got = paged_attention(
        *step, sinks, scale=64**-0.5, max_query=max(q for q, _ in rows), interpret=True, **given
    )
    np.testing.assert_allclose(np.asarray(got), dense(*step, sinks, **given), atol=2e-6)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu: make tpu-compile")
def test_it_compiles_for_tpus_with_the_memory_that_the_page_says():
    from tests.hardware.tpu.pallas_memory import STEPS, TOPOLOGIES, compiled, table

    for topology in TOPOLOGIES:
        assert "custom-call" in compiled(STEPS[1], topology).as_text()
    assert table() in (Path(__file__).parents[2] / "docs" / "tpu.md").read_text()
