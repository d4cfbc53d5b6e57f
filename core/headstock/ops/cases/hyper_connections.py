"""Cases of hyper-connections: token counts, streams, sizes, rounds and padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case, Draw

SHAPES = ((1, 4, 64), (5, 2, 7), (33, 3, 96), (3, 4, 4096))
"""Tokens, streams and features of a stream; the last are DeepSeek V4's."""
EPS: dict[str, Any] = {"norm_eps": 1e-6, "eps": 1e-6}


def spread_cases(bench: Bench) -> Iterator[Case]:
    """Yield the shapes, and columns of a wider tensor."""
    draw, dtype = bench.draw(), bench.dtype
    for tokens, streams, size in SHAPES:
        args = (draw.normal(tokens, size, dtype=dtype),)
        yield _case(bench, (tokens, streams, size), args, {"num_streams": streams})
    wide_TD = draw.normal(6, 48, dtype=dtype)[:, 8:40]
    label = "columns of a wider tensor"
    yield _case(bench, (6, 4, 32), (wide_TD,), {"num_streams": 4}, label=label)


def collapse_cases(bench: Bench) -> Iterator[Case]:
    """Yield the shapes, one round, many, streams of zeros and padding."""
    draw = bench.draw()
    for tokens, streams, size in SHAPES:
        args = _collapsed(draw, bench, tokens, streams, size)
        options = EPS | {"num_streams": streams, "num_rounds": 20}
        yield _case(bench, (tokens, streams, size), args, options)
    options = EPS | {"num_streams": 4}
    shape = (9, 4, 32)
    args = _collapsed(draw, bench, *shape)
    yield _case(bench, shape, args, options | {"num_rounds": 1}, label="one round")
    coarse = options | {"num_rounds": 3, "eps": 1e-2}
    yield _case(bench, shape, args, coarse, label="a large eps")
    padded_TC = args[0].clone()
    padded_TC[0] = 0
    padded_TC[7:] = torch.nan
    padded = (padded_TC, *args[1:])
    options |= {"num_rounds": 20}
    yield _case(bench, shape, padded, options, label="zeros, padding", num_real=7)


def expand_cases(bench: Bench) -> Iterator[Case]:
    """Yield the shapes, with padding where there are several tokens."""
    draw, dtype = bench.draw(), bench.dtype
    for tokens, streams, size in SHAPES:
        x_TC = draw.normal(tokens, streams * size, dtype=dtype)
        y_TD = draw.normal(tokens, size, dtype=dtype)
        num_real = max(1, tokens - 2)
        x_TC[num_real:] = torch.nan
        mix_TM = draw.uniform(tokens, streams * streams)
        args = (x_TC, y_TD, draw.uniform(tokens, streams, high=2), mix_TM)
        yield _case(bench, (tokens, streams, size), args, {}, num_real=num_real)


def merge_cases(bench: Bench) -> Iterator[Case]:
    """Yield the shapes."""
    draw = bench.draw()
    for tokens, streams, size in SHAPES:
        x_TC = draw.normal(tokens, streams * size, dtype=bench.dtype)
        mix_NC = draw.normal(streams, streams * size, scale=(streams * size) ** -0.5)
        args = (x_TC, mix_NC, draw.normal(streams), draw.uniform(1, low=0.5, high=1.5))
        yield _case(bench, (tokens, streams, size), args, EPS)


def _collapsed(
    draw: Draw, bench: Bench, tokens: int, streams: int, size: int
) -> tuple[Tensor, ...]:
    num_weights, width = streams * (2 + streams), streams * size
    return (
        draw.normal(tokens, width, dtype=bench.dtype),
        draw.normal(num_weights, width, scale=width**-0.5),
        draw.normal(num_weights),
        draw.uniform(3, low=0.5, high=1.5),
    )


def _case(
    bench: Bench,
    shape: tuple[int, int, int],
    args: tuple[Tensor, ...],
    kwargs: dict[str, Any],
    *,
    label: str | None = None,
    num_real: int | None = None,
) -> Case:
    """Return the case of some tokens, streams and features of a stream."""
    tokens, streams, size = shape
    return Case(
        label=label or f"{tokens} tokens, {streams} streams of {size}",
        spec=bench.spec({"num_streams": streams, "size": size}),
        args=args,
        kwargs=kwargs,
        num_real=num_real,
    )
