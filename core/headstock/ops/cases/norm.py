"""Cases of the norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from headstock.ops.cases.base import Bench, Case

EPS = 1e-5


def rms_norm_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, views, heads, extreme values and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, size in (
        (1, 64),
        (2, 576),
        (17, 64),
        (3, 1),
        (5, 7),
        (4, 4096),
        (130, 128),
        (1030, 16),
        (8200, 8),
    ):
        x_TD, weight_D = draw.normal(num_tokens, size, dtype=dtype), draw.normal(size, dtype=dtype)
        yield _case(bench, f"{num_tokens} tokens of {size}", x_TD, weight_D)
    weight_D = draw.normal(64, dtype=dtype)
    wide = draw.normal(5, 192, dtype=dtype)
    yield _case(bench, "columns of a wider tensor", wide[:, 64:128], weight_D)
    yield _case(bench, "every other row", draw.normal(10, 64, dtype=dtype)[::2], weight_D)
    fused = draw.normal(6, 5, 64, dtype=dtype)
    yield _case(bench, "heads", fused, weight_D)
    yield _case(bench, "heads of a fused projection", fused[:, 1:4], weight_D)
    yield _case(bench, "zeros", torch.zeros_like(fused[0]), weight_D)
    yield _case(bench, "tiny", draw.normal(3, 64, dtype=dtype, scale=1e-4), weight_D)
    yield _case(bench, "huge", draw.normal(3, 64, dtype=dtype, scale=1e4), weight_D)
    padded = draw.normal(6, 64, dtype=dtype)
    padded[4:] = torch.nan
    yield _case(bench, "padding", padded, weight_D, num_real=4)
    if dtype != torch.float32:
        near_D = draw.normal(576, scale=1e-3) + 1
        yield _case(bench, "float32 weight", draw.normal(5, 576, dtype=dtype), near_D)


def add_rms_norm_cases(bench: Bench) -> Iterator[Case]:
    """Yield the sums of pairs of what :func:`rms_norm_cases` normalises in two dimensions."""
    for case in rms_norm_cases(bench):
        x_TD, weight_D = case.args
        if x_TD.dim() == 2:
            residual_TD = bench.draw(1).normal(*x_TD.shape, dtype=bench.dtype)
            yield Case(
                label=case.label,
                spec=case.spec,
                args=(x_TD, residual_TD, weight_D),
                kwargs=case.kwargs,
                writes=frozenset({1}),
                num_real=case.num_real,
            )


def layer_norm_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, views, no shift, rows far from zero, equal values and padding."""
    draw, dtype = bench.draw(), bench.dtype

    def case(label: str, x_TD: torch.Tensor, num_real: int | None = None) -> Case:
        size = x_TD.shape[1]
        weight_D, bias_D = draw.normal(size, dtype=dtype), draw.normal(size, dtype=dtype)
        return Case(
            label=label,
            spec=bench.spec({"size": size}),
            args=(x_TD, weight_D, None if "no shift" in label else bias_D),
            kwargs={"eps": EPS},
            num_real=num_real,
        )

    for num_tokens, size in (
        (1, 64),
        (2, 384),
        (17, 64),
        (5, 7),
        (4, 1024),
        (130, 128),
        (1030, 16),
    ):
        for label in ("", ", no shift"):
            x_TD = draw.normal(num_tokens, size, dtype=dtype)
            yield case(f"{num_tokens} tokens of {size}{label}", x_TD)
    yield case("columns of a wider tensor", draw.normal(5, 192, dtype=dtype)[:, 64:128])
    yield case("every other row", draw.normal(10, 64, dtype=dtype)[::2])
    yield case("far from zero", draw.normal(3, 64, dtype=dtype) + 4)
    yield case("equal values", torch.ones_like(draw.normal(3, 64, dtype=dtype)))
    padded = draw.normal(6, 64, dtype=dtype)
    padded[4:] = torch.nan
    yield case("padding", padded, num_real=4)


def add_layer_norm_cases(bench: Bench) -> Iterator[Case]:
    """Yield the sums of pairs of what :func:`layer_norm_cases` normalises."""
    for case in layer_norm_cases(bench):
        x_TD, weight_D, bias_D = case.args
        residual_TD = bench.draw(1).normal(*x_TD.shape, dtype=bench.dtype)
        yield Case(
            label=case.label,
            spec=case.spec,
            args=(x_TD, residual_TD, weight_D, bias_D),
            kwargs=case.kwargs,
            writes=frozenset({1}),
            num_real=case.num_real,
        )


def _case(
    bench: Bench, label: str, x: torch.Tensor, weight_D: torch.Tensor, num_real: int | None = None
) -> Case:
    spec = bench.spec({"size": weight_D.shape[0]})
    features = frozenset({"wide-weight"}) if weight_D.dtype != x.dtype else frozenset[str]()
    return Case(
        label=label,
        spec=replace(spec, features=features),
        args=(x, weight_D),
        kwargs={"eps": EPS},
        num_real=num_real,
    )
