"""Cases of gates on attention's output."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case


def norm_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, heads, sizes, gates in wider tensors, and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, heads, size in (
        (1, 4, 64),
        (3, 32, 128),
        (17, 5, 16),
        (2, 1, 7),
        (1030, 1, 16),
    ):
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
    for num_tokens, size in ((1, 64), (5, 7), (33, 576), (2, 4096), (1030, 16)):
        wide_TY = draw.normal(num_tokens, 2 * size + 8, dtype=dtype)
        args = (draw.normal(num_tokens, size, dtype=dtype), wide_TY[:, :size])
        yield Case(label=f"{num_tokens} tokens of {size}", spec=spec, args=args)
    padded = draw.normal(6, 40, dtype=dtype)
    padded[4:] = torch.nan
    args = (padded, padded.clone())
    yield Case(label="padding", spec=spec, args=args, num_real=4)


def head_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, heads, sizes, gates in wider tensors, and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, heads, size in ((1, 4, 64), (5, 3, 7), (33, 12, 48), (2, 96, 128), (900, 2, 8)):
        wide_TY = draw.normal(num_tokens, heads + 8, dtype=dtype)
        args = (draw.normal(num_tokens, heads * size, dtype=dtype), wide_TY[:, 8:])
        label = f"{num_tokens} tokens, {heads} heads of {size}"
        yield Case(label=label, spec=bench.spec({"size": size}), args=args)
    padded, gate = draw.normal(6, 40, dtype=dtype), draw.normal(6, 5, dtype=dtype)
    padded[4:], gate[4:] = torch.nan, torch.nan
    yield Case(label="padding", spec=bench.spec({"size": 8}), args=(padded, gate), num_real=4)


def softplus_cases(bench: Bench) -> Iterator[Case]:
    """Yield gates of heads and of features, in wider tensors, large ones, and padding."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, gates, size in ((1, 4, 64), (5, 7, 1), (33, 12, 48), (900, 2, 8)):
        wide_TY = draw.normal(num_tokens, gates + 8, dtype=dtype, scale=12)
        args = (draw.normal(num_tokens, gates * size, dtype=dtype), wide_TY[:, 8:])
        yield Case(label=f"{num_tokens} tokens, {gates} gates of {size}", spec=spec, args=args)
    padded, gate = draw.normal(6, 40, dtype=dtype), draw.normal(6, 5, dtype=dtype)
    padded[4:], gate[4:] = torch.nan, torch.nan
    yield Case(label="padding", spec=spec, args=(padded, gate), num_real=4)


def grouped_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, groups, both orders, gates in wider tensors, and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for is_first in (True, False):
        for num_tokens, groups, size in ((1, 1, 64), (3, 8, 128), (17, 2, 40), (2, 3, 7)):
            width = groups * size
            wide_TY = draw.normal(num_tokens, width + 24, dtype=dtype)
            x_TC = draw.normal(num_tokens, width, dtype=dtype)
            kwargs = {"num_groups": groups, "eps": 1e-6, "is_gated_first": is_first}
            yield Case(
                label=f"{num_tokens} tokens, {groups} groups of {size}, gate first: {is_first}",
                spec=bench.spec({"group_size": size}),
                args=(x_TC, wide_TY[:, 24:], draw.normal(width, dtype=dtype)),
                kwargs=kwargs,
            )
    padded = draw.normal(5, 128, dtype=dtype)
    padded[3:] = torch.nan
    yield Case(
        label="padding",
        spec=bench.spec({"group_size": 64}),
        args=(padded, padded.clone(), draw.normal(128, dtype=dtype)),
        kwargs={"num_groups": 2, "eps": 1e-6, "is_gated_first": True},
        num_real=3,
    )
