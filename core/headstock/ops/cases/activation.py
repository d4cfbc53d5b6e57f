"""Cases of the activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case

GROUP = 128
FP8_STEP = (7e-2, 1e-2)
"""Of values in 8-bit floating point: steps are an eighth of the value at most, errors half."""


def gated_cases(bench: Bench) -> Iterator[Case]:
    """Yield gate and up features: token counts, sizes, views, extreme gates and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, size in ((1, 64), (2, 1536), (17, 64), (3, 1), (5, 7), (130, 96)):
        gate_up_TG = draw.normal(num_tokens, 2 * size, dtype=dtype)
        yield _case(bench, f"{num_tokens} tokens of {size}", gate_up_TG)
    yield _case(bench, "columns of a wider tensor", draw.normal(5, 192, dtype=dtype)[:, 32:160])
    yield _case(bench, "every other row", draw.normal(10, 128, dtype=dtype)[::2])
    yield _case(bench, "extreme gates", draw.normal(4, 128, dtype=dtype, scale=50))
    padded = draw.normal(6, 128, dtype=dtype)
    padded[3:] = torch.nan
    yield _case(bench, "padding", padded, num_real=3)


def grouped_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same for the quantising activation, told by what its values stand for."""
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


def _case(bench: Bench, label: str, gate_up_TG: torch.Tensor, num_real: int | None = None) -> Case:
    size = gate_up_TG.shape[1] // 2
    return Case(label=label, spec=bench.spec({"size": size}), args=(gate_up_TG,), num_real=num_real)
