"""Cases of linear attention: ragged steps that go on from states, checked in float64.

States that no row may read hold not-a-numbers, as do padding tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch, page_format_of
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.device import OpDevice
from headstock.ops.linear_attention import (
    DeltaWeights,
    LinearAttentionProvider,
    LinearAttentionSpec,
)

Rows = Sequence[tuple[int, int]]
"""(tokens of the step, tokens seen after it) of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaInputs:
    """All tokens of every row, those of earlier steps too, and the layer's weights.

    Attributes:
        qkv_rows: Of each row. [tokens, C]
        b_rows: [tokens, V]
        a_rows: [tokens, G]
        weights: The layer's.
    """

    qkv_rows: list[Tensor]
    b_rows: list[Tensor]
    a_rows: list[Tensor]
    weights: DeltaWeights


def plain_linear_spec(dtype: torch.dtype) -> LinearAttentionSpec:
    """Return 2 key heads for 4 value heads, in small sizes that differ."""
    return LinearAttentionSpec(
        num_key_heads=2,
        num_value_heads=4,
        key_size=16,
        value_size=32,
        kernel_size=4,
        dtype=dtype,
        max_rows=32,
        max_tokens=512,
    )


def linear_attention_cases(bench: Bench) -> Iterator[Case]:
    """Yield row mixes, chunks of all lengths, head ratios and sizes."""
    plain, device = plain_linear_spec(bench.dtype), bench.device
    mixes: dict[str, tuple[Rows, dict[str, Any]]] = {
        "one token": ([(1, 1)], {}),
        "two tokens": ([(2, 2)], {}),
        "a prompt": ([(37, 37)], {}),
        "a prompt of whole chunks": ([(128, 128)], {}),
        "a prompt longer than a chunk": ([(83, 83)], {}),
        "decode": ([(1, n) for n in (2, 3, 5, 17, 70)], {}),
        "decode with padding rows": ([(1, 5), (1, 9)], {"num_padding_rows": 6}),
        "a chunk after others": ([(9, 41)], {}),
        "a chunk shorter than the convolution": ([(2, 7)], {}),
        "ragged": ([(6, 6), (1, 40), (16, 48), (1, 1), (3, 35)], {}),
        "ragged with padding rows": ([(6, 6), (1, 40), (16, 48)], {"num_padding_rows": 3}),
        "verification": ([(4, 4 + n) for n in (0, 8, 16, 50)], {}),
    }
    for label, (rows, options) in mixes.items():
        yield linear_case(label, plain, rows, device, **options)
    mixed: Rows = [(7, 7), (1, 17), (66, 70), (1, 1)]
    for key_heads, value_heads in ((1, 1), (3, 3), (2, 8)):
        spec = replace(plain, num_key_heads=key_heads, num_value_heads=value_heads)
        yield linear_case(f"{key_heads} key heads, {value_heads} values", spec, mixed, device)
    large = replace(plain, num_key_heads=1, num_value_heads=2, key_size=128, value_size=128)
    yield linear_case("sizes of Qwen3-Next", large, mixed, device)
    yield linear_case("convolution over 3", replace(plain, kernel_size=3), mixed, device)
    yield linear_case("convolution over 2", replace(plain, kernel_size=2), mixed, device)
    heads = replace(plain, num_key_heads=5, num_value_heads=5, key_size=32, value_size=16)
    yield linear_case("5 heads", heads, mixed, device)
    shared: Rows = [(1, 33), (7, 39), (70, 102)]
    yield linear_case("rows that go on from one state", plain, shared, device, is_shared=True)
    yield linear_case("slow decay", plain, [(200, 200), (1, 150)], device, speed=-6.0)
    yield linear_case("fast decay", plain, [(200, 200), (1, 150)], device, speed=4.0)
    yield from _cases_by_channel(replace(plain, decays_by_channel=True), device)


def _cases_by_channel(plain: LinearAttentionSpec, device: OpDevice) -> Iterator[Case]:
    """Yield what decays by channel could get wrong."""
    mixes: dict[str, tuple[Rows, dict[str, Any]]] = {
        "one token": ([(1, 1)], {}),
        "a prompt longer than a chunk": ([(83, 83)], {}),
        "decode with padding rows": ([(1, 5), (1, 70)], {"num_padding_rows": 6}),
        "ragged with padding rows": ([(6, 6), (1, 40), (16, 48)], {"num_padding_rows": 3}),
        "verification": ([(4, 4 + n) for n in (0, 8, 16, 50)], {}),
    }
    for label, (rows, options) in mixes.items():
        yield linear_case(f"by channel: {label}", plain, rows, device, **options)
    mixed: Rows = [(7, 7), (1, 17), (66, 70), (1, 1)]
    large = replace(plain, num_key_heads=2, num_value_heads=2, key_size=128, value_size=128)
    yield linear_case("by channel: sizes of Kimi Linear", large, mixed, device)
    heads = replace(plain, num_key_heads=5, num_value_heads=5, key_size=32, value_size=16)
    yield linear_case("by channel: 5 heads", heads, mixed, device)
    for label, speed in (("slow", -6.0), ("fast", 4.0), ("very fast", 8.0)):
        rows: Rows = [(200, 200), (1, 150)]
        yield linear_case(f"by channel: {label} decay", plain, rows, device, speed=speed)


def linear_case(
    label: str,
    spec: LinearAttentionSpec,
    rows: Rows,
    device: OpDevice,
    *,
    speed: float = 0.0,
    is_shared: bool = False,
    **options: Any,
) -> Case:
    """Return the case of one step; ``options`` are those of ``make_step``."""
    step = make_step(rows, 16, device.torch_device, **options)
    inputs = make_delta_inputs(spec, rows, device.torch_device, speed)
    if is_shared:
        inputs = with_one_past(inputs, rows)

    def call(build: Callable[..., LinearAttentionProvider]) -> tuple[Tensor, Tensor]:
        provider = build(spec, device)
        kv, batch = begun_states(provider, step, inputs)
        if is_shared:
            batch.page_table_RP[: len(rows), 0] = batch.page_table_RP[0, 0].clone()
        y_TVd = go_on(provider, kv, batch, inputs)
        _, after = provider.read(kv, batch.page_table_RP[: len(rows), 1])
        return y_TVd[: step.num_real_tokens], after

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: dense_linear_attention(spec, rows, inputs),
    )


def make_delta_inputs(
    spec: LinearAttentionSpec, rows: Rows, device: torch.device, speed: float = 0.0
) -> DeltaInputs:
    """Draw all of it."""
    draw, heads = Draw(device, seed=1), spec.num_value_heads
    weights = DeltaWeights(
        conv_CW=draw.normal(spec.conv_size, spec.kernel_size, dtype=spec.dtype, scale=0.5),
        decay_V=draw.uniform(heads, low=-2, high=1) + speed,
        bias_G=draw.normal(spec.num_decays),
    )
    return DeltaInputs(
        qkv_rows=[draw.normal(n, spec.conv_size, dtype=spec.dtype) for _, n in rows],
        b_rows=[draw.normal(n, heads, dtype=spec.dtype) for _, n in rows],
        a_rows=[draw.normal(n, spec.num_decays, dtype=spec.dtype) for _, n in rows],
        weights=weights,
    )


def with_one_past(inputs: DeltaInputs, rows: Rows) -> DeltaInputs:
    """Return inputs whose rows have the first row's tokens of earlier steps for theirs."""
    num_earlier = rows[0][1] - rows[0][0]
    assert all(length - num == num_earlier for num, length in rows), f"pasts differ: {rows}"

    def joined(parts: list[Tensor]) -> list[Tensor]:
        return [torch.cat((parts[0][:num_earlier], x[num_earlier:])) for x in parts]

    return replace(
        inputs,
        qkv_rows=joined(inputs.qkv_rows),
        b_rows=joined(inputs.b_rows),
        a_rows=joined(inputs.a_rows),
    )


def begun_states(
    provider: LinearAttentionProvider, step: Step, inputs: DeltaInputs
) -> tuple[Tensor, StepBatch]:
    """Return pages after the tokens of earlier steps, made by the provider, and the step's batch.

    Rows leave their states on pages of their own, other than those that they find them on.
    """
    device, num_rows = inputs.qkv_rows[0].device, len(inputs.qkv_rows)
    shape = provider.kv_shape(2 * num_rows + 1)
    kv = torch.full(shape, torch.nan, dtype=page_format_of(provider).dtype, device=device)
    num_padding = step.batch.num_rows - num_rows
    for row, qkv in enumerate(inputs.qkv_rows):
        num_earlier = len(qkv) - step.batch.host_rows[row][0]
        if num_earlier:
            past = make_step([(num_earlier, num_earlier)], 16, device).batch
            past = replace(past, page_table_RP=pages_of([(row + 1, row + 1)], device), groups=())
            provider.plan(past)
            args = [x[row][:num_earlier] for x in (inputs.qkv_rows, inputs.b_rows, inputs.a_rows)]
            provider.run(args[0], args[1], args[2], inputs.weights, kv, past)
    table = [(row + 1, 2 * num_rows - row) for row in range(num_rows)] + [(0, 0)] * num_padding
    return kv, replace(step.batch, page_table_RP=pages_of(table, device), groups=())


def pages_of(table: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the page table of (page found, page left) of each row."""
    return torch.tensor(table, dtype=torch.int32, device=device)


def go_on(
    provider: LinearAttentionProvider, kv: Tensor, batch: StepBatch, inputs: DeltaInputs
) -> Tensor:
    """Run the step as a layer does. [T, V, Dv]"""
    args: list[Tensor] = []
    for rows in (inputs.qkv_rows, inputs.b_rows, inputs.a_rows):
        newest = [x[-num:] for x, (num, _) in zip(rows, batch.host_rows, strict=False)]
        num_padding = batch.num_tokens - sum(map(len, newest))
        padding = newest[0].new_full((num_padding, newest[0].shape[1]), torch.nan)
        args.append(torch.cat([*newest, padding]))
    provider.plan(batch)
    return provider.run(args[0], args[1], args[2], inputs.weights, kv, batch)


def dense_linear_attention(
    spec: LinearAttentionSpec, rows: Rows, inputs: DeltaInputs
) -> tuple[Tensor, Tensor]:
    """Go through every row token by token in float64: outputs [T, V, Dv] and states [R, V, Dk, Dv].

    What is kept in a narrower dtype between is rounded to it, as providers do.
    """
    outs: list[Tensor] = []
    after: list[Tensor] = []
    for row, (num_tokens, length) in enumerate(rows):
        args = [x[row].double() for x in (inputs.qkv_rows, inputs.b_rows, inputs.a_rows)]
        y_LVd, state_Vkd = _dense_row(spec, inputs.weights, *args)
        outs.append(y_LVd[length - num_tokens :])
        after.append(state_Vkd)
    return torch.cat(outs), torch.stack(after)


def _dense_row(
    spec: LinearAttentionSpec, weights: DeltaWeights, qkv_LC: Tensor, b_LV: Tensor, a_LG: Tensor
) -> tuple[Tensor, Tensor]:
    width, each = spec.kernel_size, spec.num_value_heads // spec.num_key_heads
    padded = torch.nn.functional.pad(qkv_LC, (0, 0, width - 1, 0))
    mixed = padded.unfold(0, width, 1) * weights.conv_CW.double()
    qkv_LC = torch.nn.functional.silu(mixed.sum(-1)).to(spec.dtype).double()
    keys = spec.num_key_heads * spec.key_size
    q, k, v = qkv_LC.split((keys, keys, spec.num_value_heads * spec.value_size), dim=1)
    q, k = (
        torch.nn.functional.normalize(x.unflatten(1, (-1, spec.key_size)), dim=2).repeat_interleave(
            each, dim=1
        )
        for x in (q, k)
    )
    v = v.unflatten(1, (-1, spec.value_size))
    gate_LG = torch.nn.functional.softplus(a_LG + weights.bias_G.double())
    gate_LVc = gate_LG.unflatten(1, (spec.num_value_heads, -1))
    kept_LVc = (-weights.decay_V.double().exp().unsqueeze(1) * gate_LVc).exp()
    beta_LV = b_LV.sigmoid()
    state = torch.zeros(
        spec.num_value_heads, spec.key_size, spec.value_size, dtype=torch.float64, device=v.device
    )
    outs: list[Tensor] = []
    for t in range(len(qkv_LC)):
        state = state * kept_LVc[t].unsqueeze(2)
        held_Vd = (state * k[t].unsqueeze(2)).sum(1)
        written_Vd = (v[t] - held_Vd) * beta_LV[t].unsqueeze(1)
        state = state + k[t].unsqueeze(2) * written_Vd.unsqueeze(1)
        outs.append((state * q[t].unsqueeze(2)).sum(1) * spec.key_size**-0.5)
    return torch.stack(outs), state
