"""Windows and sinks, whatever the pages and tiles; pages before a window are gone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from triton_here import DTYPES, HAS_GPU, Here

from headstock.ops.attention import CHUNKED
from headstock.ops.cases.attention import (
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.batches import make_step
from headstock_triton.attention.provider import PagedAttention, Tuning

ROWS = [(1, 400), (1, 70), (20, 300), (1, 5), (3, 150), (6, 6)]
TILES = {
    "small": Tuning(prefill=(16, 16, 4, 2), tail=(16, 2, 2), tail_min_chunk=16, long_queries=9999),
    "whole pages": Tuning(prefill=(32, 64, 4, 2), tail=(64, 2, 2)),
}


QUICK = {(1, 16, "small"), (63, 64, "whole pages"), (65, 16, "whole pages"), (130, 64, "small")}
"""Each window, page size and tile once: the other combinations take seconds, interpreted."""
QUICK_CHUNKS = {(1, 16, "small"), (64, 64, "whole pages"), (90, 16, "whole pages")}
COMBINED = [
    pytest.param(*each, marks=[] if HAS_GPU or each in QUICK else [pytest.mark.slow])
    for each in itertools.product((1, 63, 65, 130), (16, 64), TILES)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("window", "page_size", "tiles"), COMBINED)
def test_rows_see_their_window_and_read_no_more(window, page_size, tiles, dtype):
    features = frozenset({"sliding_window", "sinks"})
    spec = replace(plain_spec(dtype, page_size), window=window, features=features)
    step = make_step(ROWS, page_size, Here.torch_device, num_padding_rows=2, window=window)
    inputs = make_inputs(spec, step, Here.torch_device)
    provider = PagedAttention(spec, Here(), TILES[tiles])
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    out = attend(provider, kv, step, inputs)[: step.num_real_tokens]
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (2e-2, 2e-2)
    right = dense_attention(spec, ROWS, inputs)
    torch.testing.assert_close(out.double(), right, rtol=rtol, atol=atol)


CHUNKS = [
    pytest.param(*each, marks=[] if HAS_GPU or each in QUICK_CHUNKS else [pytest.mark.slow])
    for each in itertools.product((1, 64, 90), (16, 64), TILES)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("chunk", "page_size", "tiles"), CHUNKS)
def test_rows_see_their_chunk_and_read_no_more(chunk, page_size, tiles, dtype):
    spec = replace(plain_spec(dtype, page_size), window=chunk, features=frozenset({CHUNKED}))
    step = make_step(ROWS, page_size, Here.torch_device, num_padding_rows=2, window=chunk)
    inputs = make_inputs(spec, step, Here.torch_device)
    provider = PagedAttention(spec, Here(), TILES[tiles])
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    out = attend(provider, kv, step, inputs)[: step.num_real_tokens]
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (2e-2, 2e-2)
    right = dense_attention(spec, ROWS, inputs)
    torch.testing.assert_close(out.double(), right, rtol=rtol, atol=atol)


def test_tails_begin_with_the_chunk():
    spec = replace(plain_spec(torch.float32, 16), window=96, features=frozenset({CHUNKED}))
    step = make_step([(1, 900), (1, 90), (1, 96), (1, 97)], 16, Here.torch_device, window=96)
    inputs = make_inputs(spec, step, Here.torch_device)
    provider = PagedAttention(spec, Here())
    attend(provider, filled_pages(provider, step, inputs, 512), step, inputs)
    items = provider._tail_items[: int(provider._totals[0])].tolist()
    first = [min(begin for row, begin, *_ in items if row == place) for place in range(4)]
    assert first == [864, 0, 0, 96]


def test_tails_begin_with_the_window():
    spec = replace(plain_spec(torch.float32, 16), window=100, features={"sliding_window"})
    step = make_step([(1, 900), (1, 90)], 16, Here.torch_device, window=100)
    inputs = make_inputs(spec, step, Here.torch_device)
    provider = PagedAttention(spec, Here())
    attend(provider, filled_pages(provider, step, inputs, 512), step, inputs)
    num_tails = int(provider._totals[0])
    items = provider._tail_items[:num_tails].tolist()
    assert min(first for row, first, *_ in items if row == 0) == 800
    assert min(first for row, first, *_ in items if row == 1) == 0
    assert num_tails <= provider._plan.tail_programs


def test_a_sink_counts_once_however_many_parts_a_row_has():
    features = frozenset({"sinks"})
    spec = replace(plain_spec(torch.float32, 16), features=features)
    rows = [(1, 300), (1, 40)]
    step = make_step(rows, 16, Here.torch_device)
    inputs = make_inputs(spec, step, Here.torch_device)
    right = dense_attention(spec, rows, inputs)
    for chunk in (32, 64, 512):
        provider = PagedAttention(spec, Here(), Tuning(tail=(32, 2, 2), tail_min_chunk=chunk))
        kv = filled_pages(provider, step, inputs, spec.max_tokens)
        out = attend(provider, kv, step, inputs)
        torch.testing.assert_close(out.double(), right, rtol=1e-4, atol=1e-5)
