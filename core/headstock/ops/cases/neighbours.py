"""Pairs of cases that differ in all rows but the first: its result must be the same, to the bit."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.base import Op
from headstock.ops.cases.attention import AttentionInputs, attend, filled_pages, make_inputs
from headstock.ops.cases.attention import plain_spec as plain_attention
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.linear import GROUPS, load_in_parts, make_weight
from headstock.ops.cases.linear_attention import (
    begun_states,
    go_on,
    make_delta_inputs,
    plain_linear_spec,
)
from headstock.ops.cases.moe import draw_experts, load_experts, ragged
from headstock.ops.cases.table import cases_of
from headstock.ops.device import OpDevice
from headstock.ops.linear import DENSE, FP8_GROUP, LinearSpec
from headstock.ops.linear_attention import LinearAttentionSpec
from headstock.ops.moe import ExpertsSpec

BY_ROW = re.compile(r"_[TSRM][A-Za-z0-9]*$")
"""Names of arguments whose first dimension is rows that have nothing to do with each other."""
TOKENS = (3, 19, 130)
ROWS = ((4, 20), (1, 33), (7, 7), (1, 90))
"""(query tokens, kv tokens) of the rows of a step; the first row is looked at."""

Pair = tuple[Case, Case, int]
"""Two cases, and how many rows of their results must be equal."""


def neighbour_cases(op: Op[..., Any], bench: Bench) -> Iterator[Pair]:
    """Yield pairs of cases of ``op`` in the bench's dtype."""
    makers: dict[str, Callable[[Bench], Iterator[Pair]]] = {
        "linear": _products,
        "experts": _experts,
        "attention": _attention,
        "linear_attention": _linear_attention,
    }
    cases = cases_of(op)
    if op.name in makers:
        yield from makers[op.name](bench)
    elif not op.is_built and cases is not None and "attention" not in op.name:
        for case in cases(bench):
            yield from _of_rows(op, case)


def _of_rows(op: Op[..., Any], case: Case) -> Iterator[Pair]:
    """Yield a case beside one whose rows from the second on are others, where it has such rows."""
    names = list(inspect.signature(op.reference).parameters)[: len(case.args)]
    rows = {
        index: arg
        for index, (name, arg) in enumerate(zip(names, case.args, strict=True))
        if BY_ROW.search(name) and isinstance(arg, Tensor) and arg.dim() and len(arg) > 1
    }
    counts = {len(arg) for arg in rows.values()}
    if case.call is not None or len(counts) != 1:
        return
    count = counts.pop()
    args = list(case.args)
    for index, arg in rows.items():
        args[index] = _other_rows(arg) if arg.is_floating_point() else arg
    if all(args[index] is case.args[index] for index in rows):
        return
    other = replace(case, args=tuple(args))
    result = case.outcome(op.reference)
    if all(len(each) == count for each in result):
        yield case, other, 1


def _other_rows(x: Tensor, num_kept: int = 1) -> Tensor:
    """Return a copy in the same strides whose rows past the first ones are others."""
    copy = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)
    copy[num_kept:] = x[num_kept:].flip(0) * 1.5 + 0.25
    return copy


def _products(bench: Bench) -> Iterator[Pair]:
    device = bench.device
    for layout, group_size in ((DENSE, 0), *GROUPS, (FP8_GROUP, 128)):
        spec = LinearSpec(
            in_features=384,
            out_features=96,
            dtype=bench.dtype,
            layout=layout,
            group_size=group_size,
        )
        for gated in (spec, replace(spec, is_gated=True)):
            weight = make_weight(spec, Draw(device.torch_device, seed=2))
            for num_tokens in TOKENS:
                draw = Draw(device.torch_device, seed=3)
                x_MI = draw.normal(num_tokens, spec.in_features, dtype=spec.dtype)
                what = f"{layout} of {group_size}, {num_tokens} tokens"
                cases = [
                    _product(what, gated, weight, x, device) for x in (x_MI, _other_rows(x_MI))
                ]
                yield cases[0], cases[1], 1


def _product(label: str, spec: LinearSpec, weight: Any, x_MI: Tensor, device: OpDevice) -> Case:
    def call(build: Callable[..., Any]) -> Tensor:
        provider = build(spec, device)
        load_in_parts(provider, weight, None)
        return provider(x_MI)

    return Case(label=label, spec=spec.as_spec(), call=call)


def _experts(bench: Bench) -> Iterator[Pair]:
    spec = ExpertsSpec(
        hidden_size=64,
        intermediate_size=32,
        num_experts=8,
        experts_per_token=2,
        dtype=bench.dtype,
    )
    for num_tokens in TOKENS:
        draw = Draw(bench.device.torch_device, seed=5)
        x_TD = draw.normal(num_tokens, spec.hidden_size, dtype=spec.dtype)
        cases = [_mixture(spec, x, bench.device) for x in (x_TD, _other_rows(x_TD))]
        yield cases[0], cases[1], 1


def _mixture(spec: ExpertsSpec, x_TD: Tensor, device: OpDevice) -> Case:
    routes_Tk = ragged(spec, len(x_TD), device)
    draw = Draw(device.torch_device, seed=6)
    shares_Tk, weights = draw.uniform(*routes_Tk.shape, low=0.1), draw_experts(spec, draw)

    def call(build: Callable[..., Any]) -> Tensor:
        provider = build(spec, device)
        load_experts(provider, weights)
        return provider(x_TD, shares_Tk, routes_Tk)

    return Case(label=f"{len(x_TD)} tokens", spec=spec.as_spec(), call=call)


def _attention(bench: Bench) -> Iterator[Pair]:
    device = bench.device
    spec = plain_attention(bench.dtype, bench.page_sizes[0])
    for rows in (ROWS, [(1, length) for _, length in ROWS]):
        step = make_step(rows, spec.page_size, device.torch_device, num_padding_rows=1)
        inputs = make_inputs(spec, step, device.torch_device)
        kept = rows[0][0]
        others = replace(
            inputs,
            q_THD=_other_rows(inputs.q_THD, kept),
            k_rows=[inputs.k_rows[0], *(x * 1.5 + 0.25 for x in inputs.k_rows[1:])],
            v_rows=[inputs.v_rows[0], *(x * 1.5 + 0.25 for x in inputs.v_rows[1:])],
        )

        label = f"rows {list(rows)}"

        def case(drawn: AttentionInputs, step: Any = step, label: str = label) -> Case:
            def call(build: Callable[..., Any]) -> Tensor:
                provider = build(spec, device)
                kv = filled_pages(provider, step, drawn, spec.max_tokens)
                return attend(provider, kv, step, drawn)

            return Case(label=label, spec=spec.as_spec(), call=call)

        yield case(inputs), case(others), kept


def _linear_attention(bench: Bench) -> Iterator[Pair]:
    plain = plain_linear_spec(bench.dtype)
    yield from _delta_rule(bench.device, plain)
    yield from _delta_rule(bench.device, replace(plain, decays_by_channel=True))


def _delta_rule(device: OpDevice, spec: LinearAttentionSpec) -> Iterator[Pair]:
    where = device.torch_device
    step, inputs = make_step(ROWS, 16, where), make_delta_inputs(spec, ROWS, where)
    others = replace(
        inputs,
        qkv_rows=[inputs.qkv_rows[0], *(x * 1.5 + 0.25 for x in inputs.qkv_rows[1:])],
        b_rows=[inputs.b_rows[0], *(x + 0.25 for x in inputs.b_rows[1:])],
        a_rows=[inputs.a_rows[0], *(x + 0.25 for x in inputs.a_rows[1:])],
    )

    def case(drawn: Any) -> Case:
        def call(build: Callable[..., Any]) -> Tensor:
            provider = build(spec, device)
            kv, batch = begun_states(provider, step, drawn)
            return go_on(provider, kv, batch, drawn)

        what = "by channel, " if spec.decays_by_channel else ""
        return Case(label=f"{what}rows {list(ROWS)}", spec=spec.as_spec(), call=call)

    yield case(inputs), case(others), ROWS[0][0]
