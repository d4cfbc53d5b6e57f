"""Cases of what is done to the outputs of matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.base import Spec
from headstock.ops.cases.base import Bench, Case


def join_cases(bench: Bench) -> Iterator[Case]:
    """Yield pairs of outputs: token counts, odd sizes, views and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, left, right in ((1, 64, 64), (3, 1, 5), (17, 768, 192), (130, 96, 33)):
        parts = (
            draw.normal(num_tokens, left, dtype=dtype),
            draw.normal(num_tokens, right, dtype=dtype),
        )
        yield Case(label=f"{num_tokens} of {left} and {right}", spec=bench.spec({}), args=parts)
    wide = draw.normal(10, 96, dtype=dtype)
    views = (wide[::2, :32], wide[::2, 64:])
    yield Case(label="columns of a wider tensor", spec=bench.spec({}), args=views)
    padded = (draw.normal(6, 8, dtype=dtype), draw.normal(6, 8, dtype=dtype))
    padded[0][3:] = torch.nan
    yield Case(label="padding", spec=bench.spec({}), args=padded, num_real=3)


def widen_cases(bench: Bench) -> Iterator[Case]:
    """Yield logits: row counts, odd sizes, and a view without its last columns."""
    draw, dtype = bench.draw(), bench.dtype
    for shape in ((1, 49152), (3, 257), (64, 1)):
        label = f"{shape[0]} of {shape[1]}"
        yield Case(label=label, spec=bench.spec({}), args=(draw.normal(*shape, dtype=dtype),))
    view = draw.normal(5, 130, dtype=dtype)[:, :127]
    yield Case(label="all columns but the last", spec=bench.spec({}), args=(view,))


def cap_cases(bench: Bench) -> Iterator[Case]:
    """Yield logits from tiny to far past the cap, odd sizes, a view and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for shape, scale in (((1, 49152), 10.0), ((3, 257), 1e-3), ((64, 1), 200.0)):
        yield _cap(
            bench, f"{shape[0]} of {shape[1]}", draw.normal(*shape, dtype=dtype, scale=scale)
        )
    yield _cap(bench, "all columns but the last", draw.normal(5, 130, dtype=dtype)[:, :127])
    padded = draw.normal(6, 8, dtype=dtype)
    padded[3:] = torch.nan
    yield _cap(bench, "padding", padded, num_real=3)


def rectify_cases(bench: Bench) -> Iterator[Case]:
    """Yield scores over and under 0, odd sizes and padding; they are float32 whatever else is."""
    draw, spec = bench.draw(), Spec(dtype="float32")
    for shape in ((1, 1), (33, 1), (3, 257)):
        x_TA = draw.normal(*shape, dtype=torch.float32)
        yield Case(label=f"{shape[0]} of {shape[1]}", spec=spec, args=(x_TA,))
    padded = draw.normal(6, 8, dtype=torch.float32)
    padded[3:] = torch.nan
    yield Case(label="padding", spec=spec, args=(padded,), num_real=3)


def _cap(bench: Bench, label: str, x_TA: torch.Tensor, num_real: int | None = None) -> Case:
    kwargs = {"cap": 30.0}
    return Case(label=label, spec=bench.spec({}), args=(x_TA,), kwargs=kwargs, num_real=num_real)
