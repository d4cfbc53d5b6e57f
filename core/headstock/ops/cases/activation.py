"""Cases of the activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.activation_kinds import (
    GELU,
    GELU_TANH,
    RELU2,
    SILU,
    Activation,
    bounded_swiglu,
    clipped_swiglu,
    limited_swiglu,
    xielu,
)
from headstock.ops.cases.base import Bench, Case

KINDS = {
    "gelu-tanh": GELU_TANH,
    "gelu": GELU,
    "relu2": RELU2,
    "clipped-swiglu": clipped_swiglu(7.0, 1.702),
    "a low limit": clipped_swiglu(0.5, 3.0),
    "bounded-swiglu": bounded_swiglu(7.0),
    "a low bound": bounded_swiglu(0.5),
    "limited-swiglu": limited_swiglu(7.0),
    "a low limit of both": limited_swiglu(0.5),
    "xielu": xielu(0.8, 1.3, 0.5, -1e-6),
}
GROUP = 128
FP8_STEP = (7e-2, 1e-2)
"""Of values in 8-bit floating point: steps are an eighth of the value at most, errors half."""


def gated_cases(bench: Bench) -> Iterator[Case]:
    """Yield gate and up features: token counts, sizes, views, extreme gates and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, size in (
        (1, 64),
        (2, 1536),
        (17, 64),
        (3, 1),
        (5, 7),
        (130, 96),
        (8200, 8),
        (2, 14336),
    ):
        gate_up_TG = draw.normal(num_tokens, 2 * size, dtype=dtype)
        yield _case(bench, f"{num_tokens} tokens of {size}", gate_up_TG)
    yield _case(bench, "columns of a wider tensor", draw.normal(5, 192, dtype=dtype)[:, 32:160])
    yield _case(bench, "every other row", draw.normal(10, 128, dtype=dtype)[::2])
    yield _case(bench, "extreme gates", draw.normal(4, 128, dtype=dtype, scale=50))
    padded = draw.normal(6, 128, dtype=dtype)
    padded[3:] = torch.nan
    yield _case(bench, "padding", padded, num_real=3)
    for label, activation in KINDS.items():
        for num_tokens, size in ((2, 1536), (17, 7), (130, 96)):
            gate_up_TG = draw.normal(num_tokens, 2 * size, dtype=dtype, scale=3)
            yield _case(bench, f"{label}, {num_tokens} of {size}", gate_up_TG, activation)
        tiny = draw.normal(3, 128, dtype=dtype, scale=1e-3)
        yield _case(bench, f"{label}, tiny", tiny, activation)
        extreme = draw.normal(4, 128, dtype=dtype, scale=50)
        yield _case(bench, f"{label}, extreme", extreme, activation)


def plain_cases(bench: Bench) -> Iterator[Case]:
    """Yield activations of one argument: token counts, sizes, views, extremes and padding."""
    draw, dtype = bench.draw(), bench.dtype
    kinds = {"silu": SILU} | {name: KINDS[name] for name in ("gelu", "gelu-tanh", "relu2", "xielu")}
    padded = draw.normal(6, 64, dtype=dtype)
    padded[3:] = torch.nan
    inputs: list[tuple[str, Tensor, int | None]] = [
        ("1 token of 64", draw.normal(1, 64, dtype=dtype), None),
        ("17 tokens of 7", draw.normal(17, 7, dtype=dtype, scale=3), None),
        ("130 tokens of 96", draw.normal(130, 96, dtype=dtype), None),
        ("columns of a wider tensor", draw.normal(5, 192, dtype=dtype)[:, 32:96], None),
        ("extreme", draw.normal(4, 128, dtype=dtype, scale=50), None),
        ("padding", padded, 3),
    ]
    for kind, activation in kinds.items():
        for label, x_TF, num_real in inputs:
            spec = replace(bench.spec({"size": x_TF.shape[1]}), features=activation.features)
            yield Case(
                label=f"{kind}, {label}",
                spec=spec,
                args=(x_TF,),
                kwargs={} if activation is SILU else {"activation": activation},
                num_real=num_real,
            )


def apart_cases(bench: Bench) -> Iterator[Case]:
    """Yield gates and what they multiply: token counts, sizes, views, extremes and padding."""
    draw, dtype = bench.draw(), bench.dtype
    wide = draw.normal(5, 192, dtype=dtype)
    padded = draw.normal(6, 64, dtype=dtype)
    padded[3:] = torch.nan
    inputs: list[tuple[str, Tensor, Tensor, int | None]] = [
        (
            f"{tokens} tokens of {size}",
            draw.normal(tokens, size, dtype=dtype, scale=3),
            draw.normal(tokens, size, dtype=dtype),
            None,
        )
        for tokens, size in ((1, 64), (17, 7), (130, 96))
    ]
    inputs.append(
        ("columns of a wider tensor", draw.normal(5, 64, dtype=dtype), wide[:, 32:96], None)
    )
    inputs.append(("padding", padded, draw.normal(6, 64, dtype=dtype), 3))
    for kind in ("silu", "gelu-tanh", "gelu"):
        activation = KINDS.get(kind, SILU)
        for label, gate_TF, x_TF, num_real in inputs:
            yield Case(
                label=f"{kind}, {label}",
                spec=replace(bench.spec({"size": x_TF.shape[1]}), features=activation.features),
                args=(gate_TF, x_TF),
                kwargs={} if activation is SILU else {"activation": activation},
                num_real=num_real,
            )


def grouped_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same for the quantising activation, compared by what its values stand for."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, size in ((1, 128), (2, 1536), (17, 256), (130, 384)):
        gate_up_TG = draw.normal(num_tokens, 2 * size, dtype=dtype)
        yield _grouped(bench, f"{num_tokens} tokens of {size}", gate_up_TG)
    yield _grouped(bench, "nothing but zeros", draw.normal(3, 512, dtype=dtype, scale=0))
    padded = draw.normal(6, 512, dtype=dtype)
    padded[3:] = torch.nan
    yield _grouped(bench, "padding", padded, num_real=3)


def _grouped(bench: Bench, label: str, gate_up_TG: Tensor, num_real: int | None = None) -> Case:
    size = gate_up_TG.shape[1] // 2

    def call(run: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        values_TF, scale_TG = run(gate_up_TG, group_size=GROUP)
        groups_TGg = values_TF.to(torch.float32).unflatten(1, (-1, GROUP))
        return (groups_TGg * scale_TG.unsqueeze(-1)).flatten(1)

    def expected() -> Tensor:
        gate_TF, up_TF = gate_up_TG.double().chunk(2, dim=-1)
        return torch.nn.functional.silu(gate_TF) * up_TF

    return Case(
        label=label,
        spec=bench.spec({"size": size, "group_size": GROUP}),
        call=call,
        expected=expected,
        num_real=num_real,
        tolerance=FP8_STEP,
    )


def _case(
    bench: Bench,
    label: str,
    gate_up_TG: torch.Tensor,
    activation: Activation = SILU,
    num_real: int | None = None,
) -> Case:
    spec = bench.spec({"size": gate_up_TG.shape[1] // 2})
    return Case(
        label=label,
        spec=replace(spec, features=activation.features),
        args=(gate_up_TG,),
        kwargs={} if activation is SILU else {"activation": activation},
        num_real=num_real,
    )
