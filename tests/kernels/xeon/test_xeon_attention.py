from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from headstock.ops.attention import AttentionProvider, AttentionSpec, attention
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.narrow_pages import NARROW
from headstock.plugins.host import HostDevice
from headstock_xeon.kernels.attention import NativeAttention

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn
SPEC = replace(plain_spec(torch.float32, 16), num_heads=6, max_rows=64, max_tokens=1024)


def fill(provider: AttentionProvider, step: Step, k: Tensor, v: Tensor, *, poison: bool) -> Tensor:
    """Return pages that hold each row's keys and values, and what is not a number elsewhere."""
    kv = torch.zeros(provider.kv_shape(step.num_pages + 1), dtype=provider.page_format.dtype)
    if poison:
        kv.view(torch.uint8).fill_(
            0xFF
        )  # Not a number in every dtype; int8 pages: scales that are.
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
    step = make_step(rows, 16, CPU, num_padding_rows=padding, window=window)
    got, (q, k, v) = attend(device, spec, step, poison=True)
    wanted = reference(spec, q, k, v, step.batch.positions_T[: len(got)])
    assert (got.double() - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.float16, torch.bfloat16, *NARROW])
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


@pytest.mark.parametrize("window", [100, 200, 450])
@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([(1, 600)] * 5, [(0, 5, 512)]),
        ([(1, 900), (1, 700), (1, 800)], [(0, 3, 640)]),
        ([(8, 900), (1, 530), (3, 615)], [(0, 3, 512)]),
    ],
)
def test_rows_with_a_window_share_what_all_of_them_see(device, rows, shared, window) -> None:
    spec = replace(SPEC, window=window)
    step = make_step(rows, 16, CPU, shared=shared, window=window)
    with_tree, (q, k, v) = attend(device, spec, step, poison=True)
    step.batch.counts[2] = 0
    without_tree, _ = attend(device, spec, step, poison=True)
    assert torch.equal(with_tree, without_tree)
    wanted = reference(spec, q, k, v, step.batch.positions_T)
    assert (with_tree.double() - wanted).abs().max() < 2e-5


def test_a_soft_cap_is_as_exact_as_the_library_s(device) -> None:
    """Scores from tiny to far past the cap."""
    step = make_step([(40, 40)], 16, CPU)
    for scale in (1e-4, 0.1, 1.0, 30.0):
        spec = replace(SPEC, soft_cap=50.0, features=frozenset({"soft_cap"}), scale=scale)
        got, (q, k, v) = attend(device, spec, step)
        provider = attention.reference(replace(spec, num_heads=6), HostDevice())
        kv = fill(provider, step, k, v, poison=False)
        wanted = provider.run(q[step.batch.positions_T], kv, step.batch)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-5)


def test_a_wrong_hint_beyond_a_rows_first_query_is_harmless(device) -> None:
    step = make_step([(4, 260), (1, 400)], 16, CPU, shared=[(0, 2, 256)])
    step.batch.tree_N4[0, 3] = 384
    got, (q, k, v) = attend(device, SPEC, step)
    wanted = reference(SPEC, q, k, v, step.batch.positions_T)
    assert (got.double() - wanted).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("kv_dtype", "bound"),
    [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.int8, 2e-2)],
)
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


@pytest.mark.parametrize("rows", [[(3, 300), (20, 40)], [(1, 129)] * 9, [(64, 64)]])
@pytest.mark.parametrize("page_size", [16, 64])
@pytest.mark.parametrize("kv_dtype", NARROW)
def test_narrow_pages_agree_with_the_reference(
    device, rows, page_size: int, kv_dtype: torch.dtype
) -> None:
    """Both read the same numbers and scales: only the order of sums differs."""
    spec = replace(SPEC, kv_dtype=kv_dtype, page_size=page_size)
    step = make_step(rows, page_size, CPU)
    got, (q, k, v) = attend(device, spec, step, poison=True)
    reference = attention.reference(spec, HostDevice())
    kv = fill(reference, step, k, v, poison=False)
    wanted = reference.run(q[step.batch.positions_T], kv, step.batch)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_dtype", NARROW)
def test_narrow_pages_hold_what_the_reference_holds(device, kv_dtype: torch.dtype) -> None:
    spec = replace(SPEC, kv_dtype=kv_dtype)
    step = make_step([(1, 200)], 16, CPU)
    size = (200, spec.num_kv_heads, spec.head_dim)
    k, v = torch.randn(size) * torch.logspace(-3, 3, 200)[:, None, None], torch.randn(size)
    k[7] = 0
    k[8] *= torch.logspace(-8, 0, spec.head_dim)  # codes without an exponent
    found = []
    for provider in (NativeAttention(spec, device), attention.reference(spec, HostDevice())):
        kv = fill(provider, step, k, v, poison=False)
        found.append(provider.read(kv, step.slots[0]))
    for native, plain in zip(*found, strict=True):
        assert torch.equal(native, plain)
    largest = k.abs().amax(-1, keepdim=True)
    steps = largest / 253
    if kv_dtype == FP8:
        steps = torch.maximum(k.abs() / 15.9, largest / 448 / 1000)
    assert ((found[0][0] - k).abs() <= steps).all()


def test_every_number_of_fp8_is_read_and_written_as_torch_has_it(device) -> None:
    """All codes, what lies between two of them and just beside the middle; ties go to even."""
    spec = replace(SPEC, kv_dtype=FP8)
    codes = torch.arange(127, dtype=torch.uint8).view(FP8).float()
    middle = (codes[1:] + codes[:-1]) / 2
    near = torch.cat((codes, middle, middle.nextafter(middle * 2), middle.nextafter(middle * 0)))
    numbers = torch.cat((near, -near, torch.zeros(61))).view(-1, spec.head_dim - 1)[:, None]
    numbers = numbers.expand(-1, spec.num_kv_heads, -1)
    k = torch.cat((numbers, torch.full_like(numbers[..., :1], 448)), dim=-1).contiguous()
    step = make_step([(1, len(k))], 16, CPU)
    for provider in (NativeAttention(spec, device), attention.reference(spec, HostDevice())):
        kv = fill(provider, step, k, -k, poison=False)
        for found, sign in zip(provider.read(kv, step.slots[0]), (1, -1), strict=True):
            assert torch.equal(found, (k * sign).to(FP8).float())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("kv_dtype", NARROW)
def test_narrow_pages_do_not_hide_what_is_not_a_number(
    device, bad: float, kv_dtype: torch.dtype
) -> None:
    spec = replace(SPEC, kv_dtype=kv_dtype)
    step = make_step([(1, 20)], 16, CPU)
    size = (20, spec.num_kv_heads, spec.head_dim)
    k, v = torch.randn(size), torch.randn(size)
    v[3, 0, 5] = bad
    for provider in (NativeAttention(spec, device), attention.reference(spec, HostDevice())):
        kv = fill(provider, step, k, v, poison=False)
        provider.plan(step.batch)
        out = provider.run(torch.randn(1, spec.num_heads, spec.head_dim), kv, step.batch)
        assert not out[0, 0].isfinite().all()
        assert out[0, -1].isfinite().all()


@pytest.mark.parametrize("kv_dtype", [*NARROW, torch.bfloat16])
def test_sharing_a_prefix_changes_no_bit_of_narrow_pages(device, kv_dtype: torch.dtype) -> None:
    spec = replace(SPEC, kv_dtype=kv_dtype)
    step = make_step([(1, 600)] * 5, 16, CPU, shared=[(0, 5, 512)])
    with_tree, _ = attend(device, spec, step)
    step.batch.counts[2] = 0
    without_tree, _ = attend(device, spec, step)
    assert torch.equal(with_tree, without_tree)
