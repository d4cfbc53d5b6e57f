"""Cases of the ops of mixtures of experts: ties, loads of many kinds, layouts and padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.activation_kinds import (
    GELU_TANH,
    RELU2,
    bounded_swiglu,
    clipped_swiglu,
    limited_swiglu,
)
from headstock.ops.canonical import dequantize
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.linear import FP8_PRODUCT, QUANTISED_PRODUCT, make_weight
from headstock.ops.cases.storage import addresses, load_and_spoil
from headstock.ops.device import OpDevice
from headstock.ops.linear import FP8_GROUP, INT4_GROUP, INT8_GROUP, MXFP4, LinearSpec
from headstock.ops.moe import ExpertsProvider, ExpertsSpec, Matrix

Weights = Mapping[tuple[int, "Matrix"], Mapping[str, Tensor]]


def route_cases(bench: Bench) -> Iterator[Case]:
    """Yield logits: sizes, ties, certainty, views and padding, their shares renormalised or not."""
    draw = bench.draw()

    def case(label: str, logits_TE: Tensor, k: int, num_real: int | None = None) -> Iterator[Case]:
        sizes = {"num_experts": logits_TE.shape[1], "experts_per_token": k}
        for is_normalized in (False, True):
            yield Case(
                label=f"{label}{', normalised' if is_normalized else ''}",
                spec=bench.spec(sizes),
                args=(logits_TE,),
                kwargs={"k": k, "is_normalized": is_normalized},
                num_real=num_real,
            )

    for num_tokens, num_experts, k in (
        (1, 8, 2),
        (5, 128, 8),
        (33, 60, 4),
        (2, 1, 1),
        (3, 6, 6),
        (1030, 16, 2),
    ):
        # Distinct in any dtype, so that an expert's rank does not hang on a rounding.
        order = torch.rand(num_tokens, num_experts, generator=draw.generator).argsort(dim=1)
        logits_TE = (order / 16).to(bench.dtype).to(draw.device)
        yield from case(f"{num_tokens} tokens, {k} of {num_experts}", logits_TE, k)
    equal = torch.zeros(3, 16, dtype=bench.dtype, device=draw.device)
    yield from case("all equal", equal, 4)
    few = draw.integers(9, 32, high=3).to(bench.dtype)
    yield from case("many ties", few, 8)
    certain = few.clone()
    certain[:, 7] = 200
    yield from case("one is certain", certain, 2)
    refused = few.clone()
    refused[:, ::2] = -torch.inf
    yield from case("half are impossible", refused, 4)
    yield from case("columns of a wider tensor", few[:, 5:29], 3)
    padded = few[:6].clone()
    padded[3:] = torch.nan
    yield from case("padding", padded, 2)


def expert_cases(bench: Bench) -> Iterator[Case]:
    """Yield loads of all kinds, sizes, layouts and padding, against float64."""
    dense = ExpertsSpec(
        hidden_size=64,
        intermediate_size=32,
        num_experts=8,
        experts_per_token=2,
        dtype=bench.dtype,
    )
    device = bench.device
    for num_tokens in (1, 2, 16, 37, 130, 1030):
        routes = ragged(dense, num_tokens, device)
        yield _case(f"{num_tokens} tokens", dense, routes, device)
    for size, between, number, k in ((64, 48, 4, 1), (32, 96, 4, 4), (40, 24, 5, 3), (1, 1, 1, 1)):
        spec = replace(
            dense,
            hidden_size=size,
            intermediate_size=between,
            num_experts=number,
            experts_per_token=k,
        )
        label = f"{k} of {number} experts of {between}"
        yield _case(label, spec, ragged(spec, 19, device), device)
    spec = replace(dense, hidden_size=576, intermediate_size=192, num_experts=3)
    yield _case("larger sizes", spec, ragged(spec, 23, device), device)
    one = replace(dense, experts_per_token=1)
    everyone = torch.full((70, 1), 5, dtype=torch.int32, device=device.torch_device)
    yield _case("all tokens on one expert", one, everyone, device)
    last = torch.tensor([[7, 0]] * 5, dtype=torch.int32, device=device.torch_device)
    yield _case("experts without a token", dense, last, device)
    padded = ragged(dense, 21, device)
    padded[13:] = -1
    yield _case("padding", dense, padded, device, num_real=13)
    partly = ragged(dense, 7, device)
    partly[::2, 1] = -1
    yield _case("fewer experts than may be", dense, partly, device)
    kinds = (GELU_TANH, clipped_swiglu(0.8, 1.702), bounded_swiglu(0.4), limited_swiglu(0.4))
    for activation in kinds:
        spec = replace(dense, activation=activation)
        yield _case(activation.kind, spec, ragged(spec, 19, device), device)
    plain = replace(dense, is_gated=False, activation=RELU2)
    for number, tokens in ((8, 1), (5, 19)):
        spec = replace(plain, num_experts=number)
        yield _case(f"no gates, {tokens} tokens", spec, ragged(spec, tokens, device), device)
    grouped = replace(plain, hidden_size=128, has_bias=True, layout=INT8_GROUP, group_size=32)
    yield _case("no gates, int8-group", grouped, ragged(grouped, 9, device), device)
    biased = replace(dense, has_bias=True, activation=clipped_swiglu(7.0, 1.702))
    for num_tokens in (1, 40):
        routes = ragged(biased, num_tokens, device)
        yield _case(f"biases, {num_tokens} tokens", biased, routes, device)
    grouped = replace(biased, hidden_size=128, layout=INT8_GROUP, group_size=32)
    yield _case("biases, int8-group", grouped, ragged(grouped, 9, device), device)
    yield _case("loaded again", dense, ragged(dense, 9, device), device, is_again=True)
    wide = replace(dense, hidden_size=4608, intermediate_size=16, num_experts=2)
    yield _case("4608 inputs", wide, ragged(wide, 3, device), device)
    yield from _quantized_cases(replace(dense, hidden_size=128, intermediate_size=64), device)
    for layout in bench.layouts:
        yield from _layout_cases(replace(dense, layout=layout), device)


def _layout_cases(spec: ExpertsSpec, device: OpDevice) -> Iterator[Case]:
    """Yield loads of experts in a layout that a plugin brings."""
    size = math.lcm(32, spec.layout.unit)
    spec = replace(spec, group_size=size, hidden_size=4 * size, intermediate_size=2 * size)
    for num_tokens in (1, 19):
        routes = ragged(spec, num_tokens, device)
        yield _case(f"{spec.layout}, {num_tokens} tokens", spec, routes, device)


def _quantized_cases(spec: ExpertsSpec, device: OpDevice) -> Iterator[Case]:
    for layout, group_size in ((INT8_GROUP, 32), (INT8_GROUP, 64), (INT4_GROUP, 32), (MXFP4, 32)):
        grouped = replace(spec, layout=layout, group_size=group_size)
        for num_tokens in (1, 19):
            routes = ragged(grouped, num_tokens, device)
            label = f"{layout} of {group_size}, {num_tokens} tokens"
            yield _case(label, grouped, routes, device)
    fp8 = replace(spec, intermediate_size=128, layout=FP8_GROUP, group_size=128)
    for num_tokens in (1, 19):
        label = f"{FP8_GROUP}, {num_tokens} tokens"
        yield _case(label, fp8, ragged(fp8, num_tokens, device), device)


def ragged(spec: ExpertsSpec, num_tokens: int, device: OpDevice) -> Tensor:
    """Draw different experts for each token, low ones more often. int32. [T, k]"""
    draw = Draw(device.torch_device, seed=4)
    drawn_TE = draw.uniform(num_tokens, spec.num_experts)
    biased_TE = drawn_TE + torch.arange(spec.num_experts, device=device.torch_device) / 8
    order_TE = biased_TE.argsort(dim=1, stable=True)
    return order_TE[:, : spec.experts_per_token].to(torch.int32)


def matrices_of(spec: ExpertsSpec) -> tuple[Matrix, ...]:
    """Return the matrices that an expert has."""
    return ("gate", "up", "down") if spec.is_gated else ("up", "down")


def draw_experts(spec: ExpertsSpec, draw: Draw) -> Weights:
    """Draw the canonical matrices of every expert; what comes out of them has unit deviation."""
    drawn: dict[tuple[int, Matrix], Mapping[str, Tensor]] = {}
    for expert in range(spec.num_experts):
        for matrix in matrices_of(spec):
            sizes = (spec.hidden_size, spec.intermediate_size)
            size_in, size_out = sizes[::-1] if matrix == "down" else sizes
            drawn[expert, matrix] = make_weight(
                LinearSpec(
                    in_features=size_in,
                    out_features=size_out,
                    dtype=spec.dtype,
                    layout=spec.layout,
                    group_size=spec.group_size,
                ),
                draw,
            )
    return drawn


def draw_biases(spec: ExpertsSpec, draw: Draw) -> dict[tuple[int, Matrix], Tensor]:
    """Draw the bias of every matrix, where the spec has any."""
    sizes = {"gate": spec.intermediate_size, "up": spec.intermediate_size, "down": spec.hidden_size}
    return {
        (expert, matrix): draw.normal(sizes[matrix], dtype=spec.dtype, scale=0.3)
        for expert in range(spec.num_experts if spec.has_bias else 0)
        for matrix in matrices_of(spec)
    }


def load_experts(provider: ExpertsProvider, weights: Weights) -> None:
    """Load every matrix in two row ranges, last one first."""
    for (expert, matrix), weight in reversed(list(weights.items())):
        num_rows = next(iter(weight.values())).shape[0]
        middle = num_rows // 2
        for begin, end in ((middle, num_rows), (0, middle)):
            if begin < end:
                rows = {name: part[begin:end] for name, part in weight.items()}
                provider.load(rows, expert, matrix, begin)


def _load_others(provider: ExpertsProvider, spec: ExpertsSpec, device: OpDevice) -> None:
    """Load what the weights replace that come after; copies that are overwritten at once."""
    for at, weight in draw_experts(spec, Draw(device.torch_device, seed=6)).items():
        load_and_spoil(weight, lambda part, at=at: load_experts(provider, {at: part}))


def _case(
    label: str,
    spec: ExpertsSpec,
    experts_Tk: Tensor,
    device: OpDevice,
    num_real: int | None = None,
    *,
    is_again: bool = False,
) -> Case:
    draw = Draw(device.torch_device, seed=5)
    weights = draw_experts(spec, draw)
    biases = draw_biases(spec, draw)
    x_TD = draw.normal(experts_Tk.shape[0], spec.hidden_size, dtype=spec.dtype)
    weights_Tk = draw.uniform(*experts_Tk.shape, low=0.1)
    if num_real is not None:
        x_TD[num_real:] = torch.nan

    def call(build: Callable[..., ExpertsProvider]) -> Tensor:
        provider = build(spec, device)
        if is_again:
            _load_others(provider, spec, device)
        before = addresses(provider)
        load_experts(provider, weights)
        assert addresses(provider) == before, "loading has moved the packed storage"
        for (expert, matrix), bias in biases.items():
            provider.load_bias(bias[:3], expert, matrix, 0)
            provider.load_bias(bias[3:], expert, matrix, 3)
        return provider(x_TD, weights_Tk, experts_Tk)

    def expected() -> Tensor:
        return _in_float64(spec, (weights, biases), x_TD, weights_Tk, experts_Tk)

    tolerance = QUANTISED_PRODUCT if spec.group_size and spec.dtype == torch.float32 else None
    if spec.layout == FP8_GROUP:
        tolerance = FP8_PRODUCT
    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=expected,
        tolerance=tolerance,
        num_real=num_real,
    )


def _in_float64(
    spec: ExpertsSpec,
    loaded: tuple[Weights, Mapping[tuple[int, Matrix], Tensor]],
    x_TD: Tensor,
    weights_Tk: Tensor,
    experts_Tk: Tensor,
) -> Tensor:
    """Compute token by token, expert by expert. [T, D]"""
    weights, biases = loaded

    def product(expert: int, matrix: Matrix, x: Tensor) -> Tensor:
        y = exact[expert, matrix] @ x
        return y + biases[expert, matrix].double() if spec.has_bias else y

    sums_TD = torch.zeros_like(x_TD, dtype=torch.float64)
    exact = {at: dequantize(spec.layout, part, torch.float64) for at, part in weights.items()}
    for token, chosen in enumerate(experts_Tk.tolist()):
        for rank, expert in enumerate(chosen):
            if expert < 0:
                continue
            x_D = x_TD[token].double()
            up_F = product(expert, "up", x_D)
            gate_F = product(expert, "gate", x_D) if spec.is_gated else up_F
            between_F = spec.activation.join(gate_F, up_F if spec.is_gated else up_F * 0 + 1)
            y_D = product(expert, "down", between_F)
            sums_TD[token] += weights_Tk[token, rank].double() * y_D
    return sums_TD
