"""Native choice of what attention reads, and attention to it: bits, ties and narrow pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headstock.ops.attention import CHOSEN_BLOCKS, AttentionSpec
from headstock.ops.cases.attention import (
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.indexer import (
    choose,
    filled_index_pages,
    make_indexer_inputs,
    plain_indexer_spec,
)
from headstock.ops.cases.latent import (
    attend_latents,
    dense_latent_attention,
    filled_latent_pages,
    make_latent_inputs,
    plain_latent_spec,
)
from headstock.ops.latent import LatentSpec
from headstock_xeon.kernels.attention import NativeAttention, NativeLatentAttention
from headstock_xeon.kernels.sparse import NativeTokenIndexer

CPU = torch.device("cpu")
ROWS = [(1, 700), (6, 500), (1, 3), (2, 260)]
NARROW = [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)]


def chosen(device, rows, **options) -> Tensor:
    spec = plain_indexer_spec(torch.float32, 16)
    step = make_step(rows, 16, CPU, **options)
    inputs = make_indexer_inputs(spec, rows, CPU)
    provider = NativeTokenIndexer(spec, device)
    return choose(provider, filled_index_pages(provider, step, inputs), step.batch, inputs)


@pytest.mark.parametrize("rows", [ROWS, [(300, 600)]])
def test_scores_that_are_not_kept_choose_the_same(device, rows) -> None:
    kept = chosen(device, rows)
    assert torch.equal(chosen(device, rows, bound_slack=500_000), kept)


def test_any_number_of_threads_chooses_the_same(open_device) -> None:
    one, two, three = (chosen(open_device(n), ROWS) for n in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(one, three)


def test_of_equal_scores_the_first_are_chosen(device) -> None:
    spec = plain_indexer_spec(torch.float32, 16)
    step = make_step([(1, 200)], 16, CPU)
    inputs = make_indexer_inputs(spec, [(1, 200)], CPU)
    inputs = replace(inputs, weight_rows=[torch.zeros_like(w) for w in inputs.weight_rows])
    provider = NativeTokenIndexer(spec, device)
    found = choose(provider, filled_index_pages(provider, step, inputs), step.batch, inputs)
    assert found.tolist() == [list(range(spec.num_chosen))]


def to_tokens(device, spec: LatentSpec) -> tuple[Tensor, Tensor]:
    """Attend to chosen tokens; return what comes out, and what should."""
    step = make_step(ROWS, 16, CPU)
    inputs = make_latent_inputs(spec, step, CPU)
    provider = NativeLatentAttention(spec, device)
    got = attend_latents(provider, filled_latent_pages(provider, step, inputs), step, inputs)
    return got, dense_latent_attention(spec, ROWS, inputs)


def to_blocks(device, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """Attend to chosen blocks; return what comes out, and what should."""
    step = make_step(ROWS, 16, CPU)
    inputs = make_inputs(spec, step, CPU)
    provider = NativeAttention(spec, device)
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    return attend(provider, kv, step, inputs), dense_attention(spec, ROWS, inputs)


LATENTS = replace(plain_latent_spec(torch.float32, 16), num_heads=6, num_chosen=400)
BLOCKS = replace(
    plain_spec(torch.float32, 16),
    num_heads=8,
    features=frozenset({CHOSEN_BLOCKS}),
    block_size=24,
)
CHOICES = pytest.mark.parametrize(("run", "spec"), [(to_tokens, LATENTS), (to_blocks, BLOCKS)])


@CHOICES
def test_parts_of_a_row_give_the_bits_of_the_whole(open_device, run, spec) -> None:
    """With more threads than rows each part is another chunk's."""
    one, two, many = (run(open_device(n), spec)[0] for n in (1, 2, 4))
    assert torch.equal(one, two)
    assert torch.equal(one, many)


@CHOICES
@pytest.mark.parametrize(("kv_dtype", "bound"), NARROW)
def test_narrow_pages_cost_their_rounding_only(device, run, spec, kv_dtype, bound: float) -> None:
    got, wanted = run(device, replace(spec, kv_dtype=kv_dtype))
    assert 0 < (got.double() - wanted).abs().max() < bound
