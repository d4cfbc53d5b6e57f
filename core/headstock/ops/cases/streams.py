"""Cases of the ops on streams of hidden states."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case

SHAPES = ((1, 4, 64), (5, 2, 7), (33, 3, 96))
"""Tokens, streams and features of a stream."""


def predict_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, streams and sizes."""
    draw, dtype = bench.draw(), bench.dtype
    for tokens, streams, size in SHAPES:
        x_TC = draw.normal(tokens, streams * size, dtype=dtype)
        coefs_TB = draw.normal(tokens, streams**2, dtype=dtype)
        yield Case(
            label=f"{tokens} tokens, {streams} streams of {size}",
            spec=bench.spec({}),
            args=(x_TC, coefs_TB),
            kwargs={"num_streams": streams},
        )


def correct_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same, and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for tokens, streams, size in SHAPES:
        x_TC = draw.normal(tokens, streams * size, dtype=dtype)
        y_TD, coefs_TA = draw.normal(tokens, size, dtype=dtype), draw.normal(tokens, streams)
        num_real = max(1, tokens - 2)
        x_TC[num_real:] = torch.nan
        yield Case(
            label=f"{tokens} tokens, {streams} streams of {size}",
            spec=bench.spec({}),
            args=(x_TC, y_TD, coefs_TA.to(dtype)),
            num_real=num_real,
        )


def others_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same shapes."""
    draw, dtype = bench.draw(), bench.dtype
    for tokens, streams, size in SHAPES:
        x_TC = draw.normal(tokens, streams * size, dtype=dtype)
        y_TD = draw.normal(tokens, size, dtype=dtype)
        label = f"{tokens} tokens, {streams} streams of {size}"
        yield Case(label=label, spec=bench.spec({}), args=(x_TC, y_TD))


def magnitude_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same shapes, and streams of zeros."""
    draw, dtype = bench.draw(), bench.dtype
    for tokens, streams, size in SHAPES:
        x_TC = draw.normal(tokens, streams * size, dtype=dtype, scale=3)
        x_TC[0, :size] = 0
        y_TD = draw.normal(tokens, size, dtype=dtype)
        label = f"{tokens} tokens, {streams} streams of {size}"
        yield Case(label=label, spec=bench.spec({}), args=(x_TC, y_TD))


def mean_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same shapes."""
    draw = bench.draw()
    for tokens, streams, size in SHAPES:
        yield Case(
            label=f"{tokens} tokens, {streams} streams of {size}",
            spec=bench.spec({}),
            args=(draw.normal(tokens, streams * size, dtype=bench.dtype),),
            kwargs={"num_streams": streams},
        )
