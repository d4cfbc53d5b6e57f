"""Cases of Mamba 2: ragged steps that go on from states, checked in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.states import MIXES, Rows, StateInputs, run_step
from headstock.ops.device import OpDevice
from headstock.ops.mamba2 import Mamba2Provider, Mamba2Spec, Mamba2Weights


def plain_mamba2_spec(dtype: torch.dtype) -> Mamba2Spec:
    """Return 4 heads in 2 groups, in small sizes that differ."""
    return Mamba2Spec(
        num_heads=4,
        num_groups=2,
        head_dim=32,
        state_size=16,
        kernel_size=4,
        dtype=dtype,
        max_rows=32,
        max_tokens=512,
    )


def mamba2_cases(bench: Bench) -> Iterator[Case]:
    """Yield row mixes, chunks of all lengths, groups, sizes and limits."""
    plain, device = plain_mamba2_spec(bench.dtype), bench.device
    for label, (rows, options) in MIXES.items():
        yield _case(label, plain, rows, device, **options)
    mixed: Rows = [(7, 7), (1, 17), (66, 70), (1, 1)]
    for heads, groups in ((1, 1), (3, 3), (8, 1), (6, 2)):
        spec = replace(plain, num_heads=heads, num_groups=groups)
        yield _case(f"{heads} heads in {groups} groups", spec, mixed, device)
    large = replace(plain, num_heads=2, num_groups=1, head_dim=64, state_size=128)
    yield _case("sizes of Nemotron-H", large, mixed, device)
    wide = replace(plain, num_heads=2, num_groups=1, head_dim=64, state_size=256)
    yield _case("sizes of Falcon-H1", wide, mixed, device)
    for width in (2, 3):
        yield _case(f"convolution over {width}", replace(plain, kernel_size=width), mixed, device)
    limited = replace(plain, least_step=0.3, largest_step=0.9)
    yield _case("steps within limits", limited, mixed, device)
    shared: Rows = [(1, 33), (7, 39), (70, 102)]
    yield _case("rows that go on from one state", plain, shared, device, is_shared=True)
    yield _case("slow decay", plain, [(200, 200), (1, 150)], device, speed=-6.0)
    yield _case("fast decay", plain, [(200, 200), (1, 150)], device, speed=4.0)


def _case(
    label: str,
    spec: Mamba2Spec,
    rows: Rows,
    device: OpDevice,
    *,
    speed: float = 0.0,
    is_shared: bool = False,
    num_padding_rows: int = 0,
) -> Case:
    step = make_step(rows, 16, device.torch_device, num_padding_rows=num_padding_rows)
    inputs = make_mamba2_inputs(spec, rows, device.torch_device, speed)
    if is_shared:
        inputs = inputs.with_one_past(rows)

    def call(build: Callable[..., Mamba2Provider]) -> tuple[Tensor, Tensor]:
        provider = build(spec, device)
        y_THP, kv, pages_R = run_step(provider, step, inputs, is_shared=is_shared)
        return y_THP, provider.read(kv, pages_R)[1]

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: dense_mamba2(spec, rows, inputs),
    )


def make_mamba2_inputs(
    spec: Mamba2Spec, rows: Rows, device: torch.device, speed: float = 0.0
) -> StateInputs:
    """Draw all of it."""
    draw, heads = Draw(device, seed=1), spec.num_heads
    weights = Mamba2Weights(
        conv_CW=draw.normal(spec.conv_size, spec.kernel_size, dtype=spec.dtype, scale=0.5),
        conv_bias_C=draw.normal(spec.conv_size, dtype=spec.dtype, scale=0.2),
        decay_H=draw.uniform(heads, low=-2, high=1) + speed,
        step_bias_H=draw.normal(heads) + min(speed, 0.0) / 2,  # or states grow without end
        skip_H=draw.normal(heads),
    )
    xbc_rows = [draw.normal(n, spec.conv_size, dtype=spec.dtype) for _, n in rows]
    dt_rows = [draw.normal(n, heads, dtype=spec.dtype) for _, n in rows]
    return StateInputs((xbc_rows, dt_rows), weights)


def dense_mamba2(spec: Mamba2Spec, rows: Rows, inputs: StateInputs) -> tuple[Tensor, Tensor]:
    """Go through every row token by token in float64: outputs [T, H, P] and states [R, H, N, P].

    What is kept in a narrower dtype between is rounded to it, as providers do.
    """
    outs: list[Tensor] = []
    after: list[Tensor] = []
    for row, (num_tokens, _) in enumerate(rows):
        xbc_LC, dt_LH = (part[row].double() for part in inputs.parts)
        y_LHP, state_HNP = _dense_row(spec, inputs, xbc_LC, dt_LH)
        outs.append(y_LHP[-num_tokens:])
        after.append(state_HNP)
    return torch.cat(outs), torch.stack(after)


def _dense_row(
    spec: Mamba2Spec, inputs: StateInputs, xbc_LC: Tensor, dt_LH: Tensor
) -> tuple[Tensor, Tensor]:
    weights, width = inputs.weights, spec.kernel_size
    padded = torch.nn.functional.pad(xbc_LC, (0, 0, width - 1, 0))
    mixed_LC = (padded.unfold(0, width, 1) * weights.conv_CW.double()).sum(-1)
    mixed_LC = torch.nn.functional.silu(mixed_LC + weights.conv_bias_C.double())
    mixed_LC = mixed_LC.to(spec.dtype).double()
    wide, each = spec.num_groups * spec.state_size, spec.num_heads // spec.num_groups
    x, b, c = mixed_LC.split((spec.num_heads * spec.head_dim, wide, wide), dim=1)
    x = x.unflatten(1, (-1, spec.head_dim))
    b, c = (v.unflatten(1, (-1, spec.state_size)).repeat_interleave(each, dim=1) for v in (b, c))
    step = torch.nn.functional.softplus(dt_LH + weights.step_bias_H.double())
    step = step.clamp(spec.least_step, spec.largest_step)
    kept = (-weights.decay_H.double().exp() * step).exp()
    shape = (spec.num_heads, spec.state_size, spec.head_dim)
    state = torch.zeros(shape, dtype=torch.float64, device=x.device)
    outs: list[Tensor] = []
    for t in range(len(x)):
        written_HP = x[t] * step[t].unsqueeze(1)
        state = state * kept[t, :, None, None] + b[t].unsqueeze(2) * written_HP.unsqueeze(1)
        outs.append((state * c[t].unsqueeze(2)).sum(1) + x[t] * weights.skip_H.double()[:, None])
    return torch.stack(outs), state
