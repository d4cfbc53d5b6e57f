"""Cases of gates on attention's output."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case


def norm_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, heads, sizes, gates in wider tensors, and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, heads, size in ((1, 4, 64), (3, 32, 128), (17, 5, 16), (2, 1, 7)):
        x_THD = draw.normal(num_tokens, heads, size, dtype=dtype)
        wide_TY = draw.normal(num_tokens, heads * size + 24, dtype=dtype)
        gate_THD = wide_TY[:, 24:].unflatten(1, (heads, size))
        args = (x_THD, gate_THD, draw.normal(size, dtype=dtype))
        label = f"{num_tokens} tokens, {heads} heads of {size}"
        yield Case(label=label, spec=bench.spec({"size": size}), args=args, kwargs={"eps": 1e-6})
    padded = draw.normal(5, 4, 32, dtype=dtype)
    padded[3:] = torch.nan
    args = (padded, padded.clone(), draw.normal(32, dtype=dtype))
    yield Case(
        label="padding", spec=bench.spec({"size": 32}), args=args, kwargs={"eps": 1e-6}, num_real=3
    )


def gate_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, columns of wider tensors, and padding."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, size in ((1, 64), (5, 7), (33, 576), (2, 4096)):
        wide_TY = draw.normal(num_tokens, 2 * size + 8, dtype=dtype)
        args = (draw.normal(num_tokens, size, dtype=dtype), wide_TY[:, :size])
        yield Case(label=f"{num_tokens} tokens of {size}", spec=spec, args=args)
    padded = draw.normal(6, 40, dtype=dtype)
    padded[4:] = torch.nan
    args = (padded, padded.clone())
    yield Case(label="padding", spec=spec, args=args, num_real=4)
