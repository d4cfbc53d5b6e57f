"""Cases of short convolutions: ragged steps that go on from states, checked in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import make_step
from headstock.ops.cases.states import MIXES, Rows, StateInputs, run_step
from headstock.ops.device import OpDevice
from headstock.ops.short_convolution import (
    ConvolutionWeights,
    ShortConvolutionProvider,
    ShortConvolutionSpec,
)


def plain_convolution_spec(dtype: torch.dtype) -> ShortConvolutionSpec:
    """Return a convolution of 40 features over 3 tokens."""
    return ShortConvolutionSpec(size=40, kernel_size=3, dtype=dtype, max_rows=32, max_tokens=512)


def short_convolution_cases(bench: Bench) -> Iterator[Case]:
    """Yield row mixes, sizes, and widths of the convolution."""
    plain, device = plain_convolution_spec(bench.dtype), bench.device
    for label, (rows, options) in MIXES.items():
        yield _case(label, plain, rows, device, **options)
    mixed: Rows = [(7, 7), (1, 17), (66, 70), (1, 1), (2, 3)]
    for size in (1, 7, 256, 1100):
        yield _case(f"{size} features", replace(plain, size=size), mixed, device)
    yield _case("many features", replace(plain, size=5000), [(9, 9), (1, 4)], device)
    for width in (2, 4, 5):
        yield _case(f"convolution over {width}", replace(plain, kernel_size=width), mixed, device)
    ungated = replace(plain, is_gated=False, kernel_size=4)
    yield _case("ungated", ungated, mixed, device)
    yield _case("ungated, many features", replace(ungated, size=1100), mixed, device)
    yield _case("ungated decode", ungated, [(1, n) for n in (2, 3, 5, 17, 70)], device)
    shared: Rows = [(1, 33), (7, 39), (70, 102)]
    yield _case("rows that go on from one state", plain, shared, device, is_shared=True)


def _case(
    label: str,
    spec: ShortConvolutionSpec,
    rows: Rows,
    device: OpDevice,
    *,
    is_shared: bool = False,
    num_padding_rows: int = 0,
) -> Case:
    step = make_step(rows, 16, device.torch_device, num_padding_rows=num_padding_rows)
    inputs = make_convolution_inputs(spec, rows, device.torch_device)
    if is_shared:
        inputs = inputs.with_one_past(rows)

    def call(build: Callable[..., ShortConvolutionProvider]) -> tuple[Tensor, Tensor]:
        provider = build(spec, device)
        y_TC, kv, pages_R = run_step(provider, step, inputs, is_shared=is_shared)
        return y_TC, provider.read(kv, pages_R)

    def expected() -> tuple[Tensor, Tensor]:
        return dense_short_convolution(spec, rows, inputs)

    return Case(label=label, spec=spec.as_spec(), call=call, expected=expected)


def make_convolution_inputs(
    spec: ShortConvolutionSpec, rows: Rows, device: torch.device
) -> StateInputs:
    """Draw all of it."""
    draw = Draw(device, seed=1)
    weights = ConvolutionWeights(
        conv_CW=draw.normal(spec.size, spec.kernel_size, dtype=spec.dtype, scale=0.5),
        bias_C=draw.normal(spec.size, dtype=spec.dtype, scale=0.5),
    )
    width = 3 * spec.size if spec.is_gated else spec.size
    parts = [draw.normal(length, width, dtype=spec.dtype) for _, length in rows]
    return StateInputs((parts,), weights)


def dense_short_convolution(
    spec: ShortConvolutionSpec, rows: Rows, inputs: StateInputs
) -> tuple[Tensor, Tensor]:
    """Convolve every row in float64: outputs [T, C] and the last inputs [R, W - 1, C].

    What is kept in a narrower dtype between is rounded to it, as providers do.
    """
    outs: list[Tensor] = []
    after: list[Tensor] = []
    weights, kept = inputs.weights, spec.kernel_size - 1
    for row, (num_tokens, _) in enumerate(rows):
        products_LC, c_LC = inputs.parts[0][row].double(), 1.0
        if spec.is_gated:
            b_LC, c_LC, x_LC = products_LC.split(spec.size, dim=1)
            products_LC = (b_LC * x_LC).to(spec.dtype).double()
        padded_YC = torch.nn.functional.pad(products_LC, (0, 0, kept, 0))
        windows_LCW = padded_YC.unfold(0, spec.kernel_size, 1)
        mixed_LC = (windows_LCW * weights.conv_CW.double()).sum(-1) + weights.bias_C.double()
        outs.append((mixed_LC.to(spec.dtype).double() * c_LC)[-num_tokens:])
        after.append(padded_YC[len(padded_YC) - kept :])
    return torch.cat(outs), torch.stack(after)
