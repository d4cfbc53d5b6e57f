"""The reference of linear, and the canonical layouts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstock.errors import UnsupportedError
from headstock.ops.canonical import dequantize, quantize_int4, quantize_int8
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP, LinearSpec, linear
from headstock.plugins.host import HostDevice

QUANTIZE = {INT8_GROUP: (quantize_int8, 127 * 2), INT4_GROUP: (quantize_int4, 15)}
SPEC = LinearSpec(in_features=64, out_features=6, dtype=torch.float32)


@settings(max_examples=50, deadline=None)
@given(
    layout=st.sampled_from(sorted(QUANTIZE)),
    group_size=st.sampled_from([32, 64]),
    shift=st.sampled_from([0.0, 3.0, -100.0]),
    seed=st.integers(0, 2**31),
)
def test_quantising_is_off_by_half_a_step_at_most(layout, group_size, shift, seed) -> None:
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(seed)) + shift
    quantize, num_steps = QUANTIZE[layout]
    back = dequantize(layout, quantize(weight, group_size), torch.float32)
    groups = weight.unflatten(1, (-1, group_size))
    span = groups.amax(-1) - groups.amin(-1)
    if layout == INT8_GROUP:
        span = 2 * groups.abs().amax(-1)
    allowed = (span / num_steps * 0.501 + 1e-5).unsqueeze(-1).expand_as(groups).flatten(1)
    assert ((weight - back).abs() <= allowed).all()


@pytest.mark.parametrize("layout", sorted(QUANTIZE))
def test_zeros_and_constants_survive_quantising(layout) -> None:
    quantize, _ = QUANTIZE[layout]
    for value in (0.0, 0.25, -3.0):
        weight = torch.full((2, 64), value)
        torch.testing.assert_close(dequantize(layout, quantize(weight, 32), torch.float32), weight)


def test_int4_has_even_features_in_the_low_nibble() -> None:
    weight = torch.arange(32, dtype=torch.float32).remainder(16)[None]
    packed = quantize_int4(weight, 32)["weight"][0]
    assert packed[0].item() == 0x10
    assert packed[1].item() == 0x32


def test_features_that_do_not_divide_into_groups_are_refused() -> None:
    spec = replace(SPEC, in_features=100, layout=INT8_GROUP, group_size=64)
    with pytest.raises(UnsupportedError, match="100 input features"):
        linear.reference(spec, HostDevice())


@pytest.mark.parametrize("layout", [DENSE, INT8_GROUP, INT4_GROUP])
def test_loading_again_replaces_in_place(layout) -> None:
    spec = replace(SPEC, layout=layout, group_size=0 if layout == DENSE else 32)
    provider = linear.reference(spec, HostDevice())
    generator = torch.Generator().manual_seed(0)
    addresses = {name: part.data_ptr() for name, part in provider.parts.items()}
    for _ in range(2):
        weight = torch.randn(6, 64, generator=generator)
        quantize = QUANTIZE[layout][0] if layout != DENSE else lambda w, g: {"weight": w}
        part = quantize(weight, 32)
        provider.load(part, 0)
        x = torch.randn(2, 64, generator=generator)
        torch.testing.assert_close(provider(x), x @ dequantize(layout, part, torch.float32).T)
    assert {name: part.data_ptr() for name, part in provider.parts.items()} == addresses


def test_a_quantised_weight_is_never_held_whole_in_floats(monkeypatch) -> None:
    monkeypatch.setattr("headstock.ops.linear_reference.BLOCK_ELEMENTS", 128)
    spec = replace(SPEC, layout=INT8_GROUP, group_size=32, has_bias=True)
    provider = linear.reference(spec, HostDevice())
    weight = torch.randn(6, 64)
    provider.load(quantize_int8(weight, 32), 0)
    provider.load_bias(torch.arange(6.0), 0)
    x = torch.randn(3, 64)
    back = dequantize(INT8_GROUP, quantize_int8(weight, 32), torch.float32)
    torch.testing.assert_close(provider(x), x @ back.T + torch.arange(6.0))


def test_bytes_are_those_of_the_layout() -> None:
    int4 = replace(SPEC, layout=INT4_GROUP, group_size=32)
    assert linear.reference(SPEC, HostDevice()).num_bytes == 6 * 64 * 4
    assert linear.reference(int4, HostDevice()).num_bytes == 6 * 32 + 2 * 6 * 2 * 4
