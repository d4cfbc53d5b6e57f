"""Cases of sums and factors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case

SHAPES = ((1, 64), (5, 7), (33, 576), (2, 4096))


def add_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, columns of wider tensors, and padding."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, size in SHAPES:
        wide_TY = draw.normal(num_tokens, 2 * size, dtype=dtype)
        args = (draw.normal(num_tokens, size, dtype=dtype), wide_TY[:, size:])
        yield Case(label=f"{num_tokens} tokens of {size}", spec=spec, args=args)
    padded = draw.normal(6, 40, dtype=dtype)
    padded[4:] = torch.nan
    yield Case(label="padding", spec=spec, args=(padded, padded.clone()), num_real=4)


def scale_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes and factors, and columns of a wider tensor."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for (num_tokens, size), factor in zip(SHAPES, (0.22, 12.0, 1.0, -0.5), strict=True):
        args, label = (draw.normal(num_tokens, size, dtype=dtype),), f"{num_tokens} by {factor}"
        yield Case(label=label, spec=spec, args=args, kwargs={"factor": factor})
    args = (draw.normal(36, 192, dtype=dtype)[:, :128],)
    yield Case(label="128 columns of 192", spec=spec, args=args, kwargs={"factor": 0.707})


def order_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, orders, columns of wider tensors, and padding."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, size in SHAPES:
        wide_TY = draw.normal(num_tokens, 2 * size, dtype=dtype)
        order_A = draw.uniform(size).argsort()
        args = (wide_TY[:, size:], order_A)
        yield Case(label=f"{num_tokens} tokens of {size}", spec=spec, args=args)
    padded = draw.normal(6, 40, dtype=dtype)
    padded[4:] = torch.nan
    args = (padded, draw.uniform(40).argsort())
    yield Case(label="padding", spec=spec, args=args, num_real=4)


def position_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, heads of fused projections, and positions in any order."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, heads, size in ((1, 4, 64), (17, 5, 16), (3, 32, 128)):
        fused = draw.normal(num_tokens, heads + 2, size, dtype=dtype)
        args = (fused[:, :heads], draw.integers(num_tokens, high=50), draw.uniform(50, low=0.5))
        yield Case(label=f"{num_tokens} tokens, {heads} heads of {size}", spec=spec, args=args)


def weigh_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, and columns of wider tensors."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, size in SHAPES:
        wide_TY = draw.normal(num_tokens, 2 * size, dtype=dtype)
        args = (wide_TY[:, size:], draw.normal(size, dtype=dtype))
        yield Case(label=f"{num_tokens} tokens of {size}", spec=spec, args=args)


def token_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts and sizes."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, size in SHAPES:
        args = (draw.normal(num_tokens, size, dtype=dtype), draw.uniform(num_tokens, 1))
        yield Case(label=f"{num_tokens} tokens of {size}", spec=spec, args=args)


def shift_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts and sizes, columns of a wider tensor, and padding."""
    draw = bench.draw()
    for num_tokens, size in ((1, 64), (33, 40), (130, 7)):
        x_TA = draw.normal(num_tokens, size + 8, dtype=bench.dtype, scale=30)[:, 8:]
        weight_A, shift_A = draw.normal(size), draw.normal(size, scale=30)
        label = f"{num_tokens} tokens of {size}"
        yield Case(label=label, spec=bench.spec({}), args=(x_TA, weight_A, shift_A))


def bound_cases(bench: Bench) -> Iterator[Case]:
    """Yield bounds that bite on both sides, on one, and on none."""
    draw = bench.draw()
    for low, high in ((-0.5, 0.75), (-torch.inf, 0.25), (-torch.inf, torch.inf)):
        x_TA = draw.normal(17, 48, dtype=bench.dtype)[:, 8:]
        bounds_2 = torch.tensor([low, high], dtype=bench.dtype, device=bench.device.torch_device)
        label = f"from {low} to {high}"
        yield Case(label=label, spec=bench.spec({}), args=(x_TA, bounds_2))
