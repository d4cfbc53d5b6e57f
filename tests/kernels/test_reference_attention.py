"""The reference of attention: pages, padding, and steps the host does not know."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstock.ops.attention import attention
from headstock.ops.cases.attention import (
    attend,
    dense_attention,
    filled_pages,
    make_inputs,
    plain_spec,
)
from headstock.ops.cases.batches import make_step
from headstock.ops.fp8_pages import pack_fp8, unpack_fp8
from headstock.ops.int8_pages import pack_int8, unpack_int8
from headstock.plugins.host import HostDevice

CPU = torch.device("cpu")
SPEC = plain_spec(torch.float32, 16)
SMALL = replace(SPEC, num_heads=3, num_kv_heads=1, head_dim=8, scale=0.5)


def run(spec, rows, host_rows=None, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the reference makes of ``rows``, and what is right."""
    step = make_step(rows, spec.page_size, CPU, **options)
    inputs = make_inputs(spec, step, CPU)
    provider = attention.reference(spec, HostDevice())
    kv = filled_pages(provider, step, inputs, spec.max_tokens)
    if host_rows is not None:
        step.batch.host_rows, known = host_rows, step.batch.host_rows
        newest = replace(step, batch=replace(step.batch, host_rows=known))
        provider.write(*_newest(newest, inputs), kv, step.batch)
        got = provider.run(inputs.q_THD, kv, step.batch, sinks_H=inputs.sinks_H)
    else:
        got = attend(provider, kv, step, inputs)
    return got[: step.num_real_tokens].double(), dense_attention(spec, rows, inputs)


def _newest(step, inputs) -> tuple[torch.Tensor, torch.Tensor]:
    counts = [num for num, _ in step.batch.host_rows[: step.num_real_rows]]
    keys = torch.cat([k[-n:] for k, n in zip(inputs.k_rows, counts, strict=True)])
    values = torch.cat([v[-n:] for v, n in zip(inputs.v_rows, counts, strict=True)])
    padding = keys.new_zeros(step.batch.num_tokens - len(keys), *keys.shape[1:])
    return torch.cat((keys, padding)), torch.cat((values, padding))


row = st.tuples(st.integers(1, 9), st.integers(0, 40)).map(lambda r: (r[0], r[0] + r[1]))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(row, min_size=1, max_size=6),
    page_size=st.sampled_from([1, 2, 5, 16]),
    num_padding_rows=st.integers(0, 3),
    slack=st.integers(0, 2),
    window=st.sampled_from([None, 1, 3, 100]),
)
def test_any_step_equals_dense_attention(rows, page_size, num_padding_rows, slack, window) -> None:
    features = frozenset() if window is None else frozenset({"sliding_window"})
    spec = replace(SMALL, page_size=page_size, window=window, features=features)
    got, wanted = run(
        spec, rows, num_padding_rows=num_padding_rows, bound_slack=slack, seed=len(rows)
    )
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "rows", [[(1, 5), (1, 40)], [(7, 7), (1, 33), (20, 30)]], ids=["decode", "mixed"]
)
def test_a_step_that_the_host_does_not_know_equals_one_it_knows(rows) -> None:
    got, wanted = run(SPEC, rows, host_rows=[], num_padding_rows=2)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_many_queries_over_many_tokens_are_taken_in_parts(monkeypatch) -> None:
    monkeypatch.setattr("headstock.ops.attention_reference.SCORES_AT_ONCE", 512)
    spec = replace(SMALL, features=frozenset({"soft_cap"}), soft_cap=3.0)
    got, wanted = run(spec, [(40, 50)])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_keys_and_values_are_kept_in_the_pages_dtype() -> None:
    spec = replace(SPEC, kv_dtype=torch.bfloat16)
    provider = attention.reference(spec, HostDevice())
    assert provider.page_format.dtype == torch.bfloat16
    got, wanted = run(spec, [(1, 20), (5, 9)])
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("kv_dtype", "bound"), [(torch.int8, 2e-2), (torch.float8_e4m3fn, 8e-2)])
def test_narrow_pages_cost_their_rounding_only(kv_dtype: torch.dtype, bound: float) -> None:
    spec = replace(SPEC, kv_dtype=kv_dtype)
    provider = attention.reference(spec, HostDevice())
    assert provider.page_format.dtype.itemsize == 1
    got, wanted = run(spec, [(1, 20), (5, 9)])
    torch.testing.assert_close(got, wanted, rtol=bound, atol=bound)


def test_fp8_is_exact_for_its_own_numbers_and_bounded_elsewhere() -> None:
    """A sixteenth of a number, or half a step of the smallest where that is more."""
    own = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(unpack_fp8(pack_fp8(torch.cat((own, -own)))), torch.cat((own, -own)))
    x_TD = torch.randn(50, 64) * torch.logspace(-6, 6, 50)[:, None]
    x_TD[3] = 0
    error = (unpack_fp8(pack_fp8(x_TD)) - x_TD).abs()
    smallest = x_TD.abs().amax(-1, keepdim=True) / 448 * 2**-10
    assert (error <= torch.maximum(x_TD.abs() / 16, smallest) * 1.0001).all()


def test_int8_is_exact_for_whole_numbers_up_to_127_and_for_zeros() -> None:
    x_TD = torch.tensor([[127.0, -3.0, 64.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(unpack_int8(pack_int8(x_TD)), x_TD)
