"""Native latent attention and its routing: cases, neighbours, threads, narrow pages, prefixes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from headstock.ops import load_all_ops
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.cases.base import Bench
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.latent import (
    attend_latents,
    dense_latent_attention,
    filled_latent_pages,
    make_latent_inputs,
    plain_latent_spec,
)
from headstock.testing.checks import judge
from headstock_xeon.kernels.attention import NativeLatentAttention
from headstock_xeon.kernels.register import register

CPU = torch.device("cpu")
SPEC = replace(plain_latent_spec(torch.float32, 16), num_heads=6, max_rows=64, max_tokens=1024)


@pytest.mark.parametrize(
    "name", ["latent_attention", "rotate_and_write_latent", "route_experts", "add_shared"]
)
def test_it_equals_the_reference(device, name: str) -> None:
    registry = OpRegistry()
    register(registry, device)
    op = load_all_ops()[name]
    (own,) = [i for i in registry.offered(op) if i.provider == "xeon"]
    bench = Bench(resolver=Resolver(registry, device), dtype=torch.float32, page_sizes=(16, 64))
    verdict = judge(op, own, [bench])
    assert verdict.num_checked >= 8
    assert not verdict.findings, "\n".join(map(str, verdict.findings))


def by_position(device, spec, rows, *, has_tree: bool = True, **options) -> tuple[Tensor, Tensor]:
    """Attend where all rows have the same cached tokens and queries by position."""
    generator = torch.Generator().manual_seed(0)
    width = spec.key_size + spec.rotary_size
    q = torch.randn(spec.max_length, spec.num_heads, width, generator=generator)
    cached = torch.randn(spec.max_length, spec.cached_size, generator=generator)
    made = (spec.num_heads, spec.key_size + spec.value_size, spec.latent_size)
    step = make_step(rows, spec.page_size, CPU, **options)
    if not has_tree:
        step.batch.counts[2] = 0
    inputs = replace(
        make_latent_inputs(spec, step, CPU),
        q_THQ=q[step.batch.positions_T],
        cached_rows=[cached[: len(slots)] for slots in step.slots],
        up_HUC=torch.randn(made, generator=generator) / 8,
    )
    provider = NativeLatentAttention(spec, device)
    kv = filled_latent_pages(provider, step, inputs)
    return attend_latents(provider, kv, step, inputs), step.batch.positions_T


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_token_has_the_same_bits_however_it_is_computed(device, kv_dtype: torch.dtype) -> None:
    spec = replace(SPEC, kv_dtype=kv_dtype)
    whole, _ = by_position(device, spec, [(700, 700)])
    for rows in ([(1, 700)], [(5, 700)], [(1, 700), (3, 20), (1, 1)], [(1, 700)] * 40):
        got, positions = by_position(device, spec, rows)
        assert torch.equal(got, whole[positions]), rows


def test_results_have_the_same_bits_on_any_number_of_threads(open_device) -> None:
    rows = [(1, 900), (50, 300), (1, 5), (8, 520)]
    one, two, three = (by_position(open_device(n), SPEC, rows)[0] for n in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [([(1, 600)] * 5, [(0, 5, 512)]), ([(8, 600), (1, 530), (3, 515)], [(0, 3, 512)])],
)
def test_sharing_a_prefix_changes_no_bit(device, rows, shared) -> None:
    with_tree, _ = by_position(device, SPEC, rows, shared=shared)
    without_tree, _ = by_position(device, SPEC, rows, has_tree=False, shared=shared)
    assert torch.equal(with_tree, without_tree)


@pytest.mark.parametrize(("kv_dtype", "bound"), [(torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
def test_narrow_pages_cost_their_rounding_only(device, kv_dtype, bound: float) -> None:
    spec, rows = replace(SPEC, kv_dtype=kv_dtype), [(3, 300), (20, 40)]
    step = make_step(rows, 16, CPU)
    inputs = make_latent_inputs(spec, step, CPU)
    provider = NativeLatentAttention(spec, device)
    got = attend_latents(provider, filled_latent_pages(provider, step, inputs), step, inputs)
    wanted = dense_latent_attention(spec, rows, inputs)
    assert 0 < (got.double() - wanted).abs().max() < bound
