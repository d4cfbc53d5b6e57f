from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from headstock.ops.attention import AttentionSpec
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.batches import Step, make_step
from headstock_xeon.kernels.attention import NativeAttention

CPU = torch.device("cpu")
SPEC = replace(plain_spec(torch.float32, 16), num_heads=6, max_rows=64, max_tokens=1024)


def fill(provider: NativeAttention, step: Step, k: Tensor, v: Tensor, *, poison: bool) -> Tensor:
    """Return pages that hold each row's keys and values, and what is not a number elsewhere."""
    kv = torch.full(provider.kv_shape(step.num_pages + 1), torch.nan if poison else 0.0)
    kv = kv.to(provider.layout.dtype)
    for slots in step.slots:
        count = len(slots)
        batch = replace(step.batch, write_slots_T=slots)
        provider.write(k[:count], v[:count], kv, batch)
    return kv


def attend(device, spec: AttentionSpec, step: Step, seed: int = 0, *, poison: bool = False):
    """Attend where all rows have the same keys, values and queries by position."""
    generator = torch.Generator().manual_seed(seed)
    size = (spec.max_length, spec.num_kv_heads, spec.head_dim)
    k, v = torch.randn(size, generator=generator), torch.randn(size, generator=generator)
    q = torch.randn(spec.max_length, spec.num_heads, spec.head_dim, generator=generator)
    provider = NativeAttention(spec, device)
    kv = fill(provider, step, k, v, poison=poison)
    provider.plan(step.batch)
    out = provider.run(q[step.batch.positions_T], kv, step.batch)
    return out[: step.num_real_tokens], (q, k, v)


def reference(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """Return causal attention in float64 at some positions."""
    group = spec.num_heads // spec.num_kv_heads
    k, v = (x.double().repeat_interleave(group, dim=1) for x in (k, v))
    scores = torch.einsum("thd,shd->hts", q[positions].double(), k) * spec.scale
    visible = torch.arange(len(k)) <= positions[:, None]
    if spec.window is not None:
        visible &= torch.arange(len(k)) > positions[:, None] - spec.window
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hts,shd->thd", weights, v)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rows=st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 500)).map(lambda r: (r[0], r[0] + r[1])),
        min_size=1,
        max_size=6,
    ),
    padding=st.integers(0, 3),
    heads=st.sampled_from([(6, 2), (9, 3), (4, 4), (5, 1), (64, 1)]),
    head_dim=st.sampled_from([8, 24, 64, 128]),
    window=st.sampled_from([None, 1, 100, 300]),
)
def test_any_ragged_step_is_right(device, rows, padding, heads, head_dim, window) -> None:
    spec = replace(
        SPEC, num_heads=heads[0], num_kv_heads=heads[1], head_dim=head_dim, window=window
    )
    step = make_step(rows, 16, CPU, num_padding_rows=padding)
    got, (q, k, v) = attend(device, spec, step, poison=True)
    wanted = reference(spec, q, k, v, step.batch.positions_T[: len(got)])
    assert (got.double() - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_token_has_the_same_bits_however_it_is_computed(device, kv_dtype: torch.dtype) -> None:
    """Prefilled, in a chunk, verified among a few, decoded alone or beside others."""
    spec = replace(SPEC, kv_dtype=kv_dtype)
    whole, _ = attend(device, spec, make_step([(700, 700)], 16, CPU))
    for rows in (
        [(1, 700)],
        [(5, 700)],
        [(100, 700)],
        [(1, 700), (3, 20), (1, 1)],
        [(1, 700)] * 40,
        [(9, 300), (1, 700)],
    ):
        step = make_step(rows, 16, CPU)
        got, _ = attend(device, spec, step)
        assert torch.equal(got, whole[step.batch.positions_T]), rows


def test_results_have_the_same_bits_on_any_number_of_threads(open_device) -> None:
    step = make_step([(1, 900), (50, 300), (1, 5), (8, 520)], 16, CPU)
    one, two, three = (attend(open_device(n), SPEC, step)[0] for n in (1, 2, 3))
    assert torch.equal(one, two)
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([(1, 600)] * 5, [(0, 5, 512)]),
        ([(1, 600)] * 5, [(0, 5, 560)]),
        ([(8, 600), (1, 530), (3, 515)], [(0, 3, 512)]),
        ([(1, 900)] * 3 + [(1, 700)] * 3, [(0, 6, 256), (0, 3, 768)]),
        ([(30, 600), (1, 600)], [(0, 2, 560)]),
        ([(1, 600)] * 40, [(0, 40, 128), (3, 9, 512)]),
    ],
)
def test_sharing_a_prefix_changes_no_bit(device, rows, shared) -> None:
    step = make_step(rows, 16, CPU, shared=shared)
    with_tree, _ = attend(device, SPEC, step)
    step.batch.counts[2] = 0
    without_tree, _ = attend(device, SPEC, step)
    assert torch.equal(with_tree, without_tree)


def test_a_wrong_hint_beyond_a_rows_first_query_is_harmless(device) -> None:
    step = make_step([(4, 260), (1, 400)], 16, CPU, shared=[(0, 2, 256)])
    step.batch.tree_N4[0, 3] = 384
    got, (q, k, v) = attend(device, SPEC, step)
    wanted = reference(SPEC, q, k, v, step.batch.positions_T)
    assert (got.double() - wanted).abs().max() < 2e-5


@pytest.mark.parametrize(("kv_dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_narrow_pages_cost_their_rounding_only(device, kv_dtype, bound: float) -> None:
    spec = replace(SPEC, kv_dtype=kv_dtype)
    step = make_step([(3, 300), (20, 40)], 16, CPU)
    got, (q, k, v) = attend(device, spec, step, poison=True)
    wanted = reference(spec, q, k, v, step.batch.positions_T)
    assert (got.double() - wanted).abs().max() < bound


@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
def test_the_size_of_pages_changes_no_bit(device, page_size: int) -> None:
    rows = [(1, 333), (40, 150)]
    small, _ = attend(device, SPEC, make_step(rows, 16, CPU))
    spec = replace(SPEC, page_size=page_size)
    large, _ = attend(device, spec, make_step(rows, page_size, CPU))
    assert torch.equal(small, large)
