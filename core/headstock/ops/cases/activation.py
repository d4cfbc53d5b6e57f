"""Cases of the activations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case


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


def _case(bench: Bench, label: str, gate_up_TG: torch.Tensor, num_real: int | None = None) -> Case:
    size = gate_up_TG.shape[1] // 2
    return Case(label=label, spec=bench.spec({"size": size}), args=(gate_up_TG,), num_real=num_real)
