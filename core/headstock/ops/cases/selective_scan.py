"""Cases of Mamba 1: ragged steps that go on from states, checked in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.states import MIXES, Rows, StateInputs, run_step
from headstock.ops.device import OpDevice
from headstock.ops.selective_scan import ScanWeights, SelectiveScanProvider, SelectiveScanSpec


def plain_scan_spec(dtype: torch.dtype) -> SelectiveScanSpec:
    """Return 40 features of 16 numbers."""
    return SelectiveScanSpec(size=40, state_size=16, dtype=dtype, max_rows=32, max_tokens=512)


def selective_scan_cases(bench: Bench) -> Iterator[Case]:
    """Yield row mixes, sizes, and speeds of decay."""
    plain, device = plain_scan_spec(bench.dtype), bench.device
    for label, (rows, options) in MIXES.items():
        yield _case(label, plain, rows, device, **options)
    mixed: Rows = [(7, 7), (1, 17), (66, 70), (1, 1)]
    for size, states in ((1, 16), (7, 8), (256, 16), (96, 24), (5, 3), (2, 64)):
        spec = replace(plain, size=size, state_size=states)
        yield _case(f"{size} features of {states}", spec, mixed, device)
    shared: Rows = [(1, 33), (7, 39), (70, 102)]
    yield _case("rows that go on from one state", plain, shared, device, is_shared=True)
    yield _case("slow decay", plain, [(200, 200), (1, 150)], device, speed=-6.0)
    yield _case("fast decay", plain, [(200, 200), (1, 150)], device, speed=4.0)


def _case(
    label: str,
    spec: SelectiveScanSpec,
    rows: Rows,
    device: OpDevice,
    *,
    speed: float = 0.0,
    is_shared: bool = False,
    num_padding_rows: int = 0,
) -> Case:
    step = make_step(rows, 16, device.torch_device, num_padding_rows=num_padding_rows)
    inputs = make_scan_inputs(spec, rows, device.torch_device, speed)
    if is_shared:
        inputs = inputs.with_one_past(rows)

    def call(build: Callable[..., SelectiveScanProvider]) -> tuple[Tensor, Tensor]:
        provider = build(spec, device)
        y_TC, kv, pages_R = run_step(provider, step, inputs, is_shared=is_shared)
        return y_TC, provider.read(kv, pages_R)

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: dense_scan(rows, inputs),
    )


def make_scan_inputs(
    spec: SelectiveScanSpec, rows: Rows, device: torch.device, speed: float = 0.0
) -> StateInputs:
    """Draw all of it."""
    draw, size, states = Draw(device, seed=1), spec.size, spec.state_size
    weights = ScanWeights(
        decay_CN=draw.uniform(size, states, low=-2, high=1) + speed,
        skip_C=draw.normal(size),
    )
    shift = min(speed, 0.0) / 2  # or states grow without end
    x_rows = [draw.normal(n, size, dtype=spec.dtype) for _, n in rows]
    dt_rows = [draw.normal(n, size, dtype=spec.dtype) + shift for _, n in rows]
    bc_rows = [draw.normal(n, 2 * states, dtype=spec.dtype) for _, n in rows]
    return StateInputs((x_rows, dt_rows, bc_rows), weights)


def dense_scan(rows: Rows, inputs: StateInputs) -> tuple[Tensor, Tensor]:
    """Go through every row token by token in float64: outputs [T, C] and states [R, C, N]."""
    weights, outs, after = inputs.weights, [], []
    speed_CN = -weights.decay_CN.double().exp()
    for row, (num_tokens, _) in enumerate(rows):
        x_LC, dt_LC, bc_LX = (part[row].double() for part in inputs.parts)
        b_LN, c_LN = bc_LX.chunk(2, dim=1)
        step_LC, state_CN = torch.nn.functional.softplus(dt_LC), torch.zeros_like(speed_CN)
        read: list[Tensor] = []
        for t in range(len(x_LC)):
            taken_CN = torch.outer(x_LC[t] * step_LC[t], b_LN[t])
            state_CN = state_CN * (speed_CN * step_LC[t].unsqueeze(1)).exp() + taken_CN
            read.append(state_CN @ c_LN[t] + x_LC[t] * weights.skip_C.double())
        outs.append(torch.stack(read)[-num_tokens:])
        after.append(state_CN)
    return torch.cat(outs), torch.stack(after)
