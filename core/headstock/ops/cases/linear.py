"""Cases of the op ``linear``: sizes, layouts, biases and lookups, against float64 products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from headstock.ops.activation import silu_and_mul
from headstock.ops.activation_kinds import GELU_TANH, clipped_swiglu
from headstock.ops.canonical import (
    dequantize,
    quantize_fp8,
)
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.storage import addresses, load_and_spoil
from headstock.ops.device import OpDevice
from headstock.ops.linear import (
    DENSE,
    FP8_GROUP,
    INT4_GROUP,
    INT8_GROUP,
    MXFP4,
    CanonicalWeight,
    GatedLinearProvider,
    GroupedActivations,
    LinearProvider,
    LinearSpec,
)

QUANTISED_PRODUCT = (2e-2, 4e-2)
"""Of grouped layouts: providers may quantise activations to 8 bits a group, a step of 2% of a
unit deviation, which averages out over the inputs to some 0.6% of it, four times that at worst."""
QUANTISED_ROWS = (2e-3, 1e-3)
"""Of lookups in grouped layouts: providers may keep scales as float16."""
FP8_PRODUCT = (5e-2, 0.2)
"""Of products in 8-bit floating point: providers may quantise activations to 3 bits of mantissa, an
error of some 2.6% of each, hence of the sum's deviation, which is a unit."""
MANY_TOKENS = (1030, 8200)
"""Tokens of a long prompt's step, and a few more than a step has unless it is set."""
NUM_PARTS = 3
"""Row ranges that a weight is loaded in, as the checkpoint streams by."""


def linear_cases(bench: Bench) -> Iterator[Case]:
    """Yield products over token counts, sizes and layouts, and lookups."""
    device = bench.device
    dense = LinearSpec(in_features=64, out_features=96, dtype=bench.dtype)
    for num_tokens in (1, 2, 7, 16, 33):
        yield _product(f"{num_tokens} tokens", dense, num_tokens, device)
    sizes = ((1, 1), (3, 5), (576, 192), (100, 257), (1536, 64), (14336, 24), (32, 33_000))
    for size_in, size_out in sizes:
        spec = replace(dense, in_features=size_in, out_features=size_out)
        yield _product(f"{size_in} in, {size_out} out", spec, 5, device)
    for num_tokens in MANY_TOKENS:
        yield _product(f"{num_tokens} tokens", dense, num_tokens, device)
    yield _product("bias", replace(dense, has_bias=True), 5, device)
    for size_in, size_out, num_tokens in ((64, 96, 1), (64, 256, 5), (128, 512, 140), (192, 6, 3)):
        gated = replace(dense, in_features=size_in, out_features=size_out, is_gated=True)
        yield _product(f"gated, {size_out} out, {num_tokens} tokens", gated, num_tokens, device)
    for num_tokens in (3, 140):
        both = replace(dense, out_features=256, is_gated=True, has_product=True)
        yield _ungated(f"gated and not, {num_tokens} tokens", both, num_tokens, device)
    for activation in (GELU_TANH, clipped_swiglu(0.8, 1.702)):
        spec = replace(dense, out_features=256, is_gated=True, activation=activation)
        yield _product(f"gated by {activation.kind}", spec, 5, device)
    for layout, group_size in GROUPS:
        grouped = replace(dense, in_features=192, layout=layout, group_size=group_size)
        for num_tokens in (1, 4, 19):
            label = f"{layout} of {group_size}, {num_tokens} tokens"
            yield _product(label, grouped, num_tokens, device)
        long = replace(grouped, in_features=1152 * group_size // 32, out_features=24)
        yield _product(f"{layout} of {group_size}, {long.in_features} in", long, 3, device)
        odd = replace(grouped, out_features=37, has_bias=True)
        yield _product(f"{layout} of {group_size}, 37 out, bias", odd, 3, device)
    for num_tokens in (1, 4, 19, 130):
        fp8 = replace(dense, in_features=384, out_features=208, layout=FP8_GROUP, group_size=128)
        yield _product(f"{FP8_GROUP}, {num_tokens} tokens", fp8, num_tokens, device)
    yield _product(f"{FP8_GROUP}, 37 out", replace(fp8, out_features=37), 3, device)
    blocks = replace(fp8, in_features=512, out_features=384)
    for num_tokens in (3, 200):
        yield _product(f"{FP8_GROUP} in blocks, {num_tokens} tokens", blocks, num_tokens, device)
    for num_tokens in (2, 19):
        spec = replace(blocks, takes_groups=True)
        yield _product(f"{FP8_GROUP} inputs, {num_tokens} tokens", spec, num_tokens, device)
    for layout, group_size in ((DENSE, 0), *GROUPS, (FP8_GROUP, 128)):
        spec = replace(dense, in_features=384, layout=layout, group_size=group_size)
        yield _each_input(f"{layout} of {group_size}, an input at a time", spec, device)
        yield _loaded_again(f"{layout} of {group_size}, loaded again", spec, device)
    many = replace(dense, in_features=128, layout=INT8_GROUP, group_size=64)
    yield _product(f"{INT8_GROUP}, {MANY_TOKENS[0]} tokens", many, MANY_TOKENS[0], device)
    for layout, group_size in ((DENSE, 0), *GROUPS):
        table = replace(dense, layout=layout, group_size=group_size, needs_rows=True)
        yield _lookup(f"lookup, {layout}", replace(table, in_features=192), device)
        scaled = replace(table, in_features=192, row_scale=1.75)
        yield _lookup(f"scaled lookup, {layout}", scaled, device)
    for layout in bench.layouts:
        yield from _layout_cases(replace(dense, layout=layout), device)


def _layout_cases(spec: LinearSpec, device: OpDevice) -> Iterator[Case]:
    """Yield products and lookups with a layout that a plugin brings."""
    layout = spec.layout
    group_size = math.lcm(32, layout.unit)
    spec = replace(spec, in_features=6 * group_size, group_size=group_size)
    for num_tokens in (1, 4, 19):
        yield _product(f"{layout}, {num_tokens} tokens", spec, num_tokens, device)
    odd = replace(spec, out_features=37, has_bias=True)
    yield _product(f"{layout}, 37 out, bias", odd, 3, device)
    wide = replace(spec, in_features=3 * group_size, group_size=3 * group_size)
    yield _product(f"{layout} in one group", wide, 3, device)
    yield _each_input(f"{layout}, an input at a time", spec, device)
    yield _loaded_again(f"{layout}, loaded again", spec, device)
    yield _lookup(f"lookup, {layout}", replace(spec, needs_rows=True), device)


GROUPS = (
    (INT8_GROUP, 32),
    (INT8_GROUP, 64),
    (INT8_GROUP, 192),
    (INT4_GROUP, 32),
    (INT4_GROUP, 64),
    (MXFP4, 32),
)


def make_weight(spec: LinearSpec, draw: Draw) -> dict[str, Tensor]:
    """Draw a canonical weight whose products with unit inputs have unit deviation."""
    scale = spec.in_features**-0.5
    weight_OI = draw.normal(spec.out_features, spec.in_features, scale=scale)
    if spec.layout == DENSE:
        return {"weight": weight_OI.to(spec.dtype)}
    return spec.layout.load_quantize()(weight_OI, spec.group_size)


def load_in_parts(provider: LinearProvider, weight: CanonicalWeight, bias_O: Tensor | None) -> None:
    """Load a weight in row ranges, last one first."""
    num_rows = next(iter(weight.values())).shape[0]
    edges = [num_rows * part // NUM_PARTS for part in range(NUM_PARTS + 1)]
    for begin, end in reversed(list(pairwise(edges))):
        if begin < end:
            provider.load({name: part[begin:end] for name, part in weight.items()}, begin)
            if bias_O is not None:
                provider.load_bias(bias_O[begin:end], begin)


def _product(label: str, spec: LinearSpec, num_tokens: int, device: OpDevice) -> Case:
    draw = Draw(device.torch_device, seed=2)
    weight = make_weight(spec, draw)
    bias_O = draw.normal(spec.out_features, dtype=spec.dtype) if spec.has_bias else None
    x_MI = draw.normal(num_tokens, spec.in_features, dtype=spec.dtype)

    def use(provider: LinearProvider) -> Tensor:
        load_in_parts(provider, weight, bias_O)
        return provider(_grouped(x_MI, spec.group_size) if spec.takes_groups else x_MI)

    def expected() -> Tensor:
        out_MO = x_MI.double() @ dequantize(spec.layout, weight, torch.float64).T
        out_MO = out_MO if bias_O is None else out_MO + bias_O.double()
        if not spec.is_gated:
            return out_MO
        return silu_and_mul.reference(out_MO, activation=spec.activation)

    return _case(label, spec, device, use, expected, QUANTISED_PRODUCT)


def _each_input(label: str, spec: LinearSpec, device: OpDevice) -> Case:
    """Return a product in which each row has one input: it shows the weight as it was packed.

    Providers that quantise activations lose nothing of one number in a group, so that a scale
    which is a little off cannot hide behind their rounding.
    """
    weight = make_weight(spec, Draw(device.torch_device, seed=2))
    x_MI = torch.eye(spec.in_features, dtype=spec.dtype, device=device.torch_device)

    def use(provider: LinearProvider) -> Tensor:
        load_in_parts(provider, weight, None)
        return provider(x_MI)

    def expected() -> Tensor:
        return dequantize(spec.layout, weight, torch.float64).T

    wide = spec.dtype != torch.float32
    case = _case(label, spec, device, use, expected, QUANTISED_ROWS)
    return replace(case, tolerance=None if wide or not spec.group_size else QUANTISED_ROWS)


def _loaded_again(label: str, spec: LinearSpec, device: OpDevice) -> Case:
    """Return a product after an update of the weights; what was loaded is overwritten at once."""
    draw = Draw(device.torch_device, seed=2)
    first, weight = make_weight(spec, draw), make_weight(spec, draw)
    x_MI = draw.normal(5, spec.in_features, dtype=spec.dtype)

    def use(provider: LinearProvider) -> Tensor:
        load_and_spoil(first, lambda part: load_in_parts(provider, part, None))
        before = addresses(provider)
        load_and_spoil(weight, lambda part: load_in_parts(provider, part, None))
        assert addresses(provider) == before, "loading again has moved the packed storage"
        return provider(x_MI)

    def expected() -> Tensor:
        return x_MI.double() @ dequantize(spec.layout, weight, torch.float64).T

    return _case(label, spec, device, use, expected, QUANTISED_PRODUCT)


def _ungated(label: str, spec: LinearSpec, num_tokens: int, device: OpDevice) -> Case:
    """Return a product that is wanted gated and as it is."""
    draw = Draw(device.torch_device, seed=2)
    weight = make_weight(spec, draw)
    x_MI = draw.normal(num_tokens, spec.in_features, dtype=spec.dtype)

    def call(build: Callable[..., GatedLinearProvider]) -> tuple[Tensor, Tensor]:
        provider = build(spec, device)
        load_in_parts(provider, weight, None)
        return provider(x_MI), provider.product(x_MI)

    def expected() -> tuple[Tensor, Tensor]:
        out_MO = x_MI.double() @ dequantize(spec.layout, weight, torch.float64).T
        return silu_and_mul.reference(out_MO), out_MO

    return Case(label=label, spec=spec.as_spec(), call=call, expected=expected)


def _grouped(x_MI: Tensor, group_size: int) -> Any:
    """Return ``x_MI`` as :class:`GroupedActivations`: quantised row by row, as weights are."""
    parts = [quantize_fp8(row_1I, group_size) for row_1I in x_MI.split(1)]
    values_MI = torch.cat([part["weight"].view(torch.uint8) for part in parts])
    scale_MG = torch.cat([part["scale"] for part in parts])
    return GroupedActivations(values_MI.view(torch.float8_e4m3fn), scale_MG)


def _lookup(label: str, spec: LinearSpec, device: OpDevice) -> Case:
    draw = Draw(device.torch_device, seed=3)
    weight = make_weight(spec, draw)
    first, last = 40, 40 + spec.out_features - 1
    ids = [first, last, first - 1, last + 1, 0, first + 7, first + 7, 10_000]
    ids_T = torch.tensor(ids, device=device.torch_device)

    def use(provider: LinearProvider) -> Tensor:
        load_in_parts(provider, weight, None)
        return provider.rows(ids_T, first)

    def expected() -> Tensor:
        table_OI = dequantize(spec.layout, weight, torch.float64) * spec.row_scale
        rows = [
            table_OI[i - first] if first <= i <= last else torch.zeros_like(table_OI[0])
            for i in ids
        ]
        return torch.stack(rows)

    return _case(label, spec, device, use, expected, QUANTISED_ROWS)


def _case(
    label: str,
    spec: LinearSpec,
    device: OpDevice,
    use: Callable[[LinearProvider], Tensor],
    expected: Callable[[], Tensor],
    quantised: tuple[float, float],
) -> Case:
    def call(build: Callable[..., LinearProvider]) -> Tensor:
        return use(build(spec, device))

    tolerance = quantised if spec.group_size and spec.dtype == torch.float32 else None
    if spec.layout == FP8_GROUP:
        tolerance = FP8_PRODUCT
    return Case(label=label, spec=spec.as_spec(), call=call, expected=expected, tolerance=tolerance)
