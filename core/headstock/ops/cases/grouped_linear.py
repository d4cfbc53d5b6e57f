"""Cases of products of groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case


def grouped_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, groups, sizes, DeepSeek V4's among them, a view and padding."""
    draw, dtype = bench.draw(), bench.dtype
    for tokens, groups, inputs, outputs in (
        (1, 1, 64, 32),
        (5, 2, 24, 7),
        (33, 8, 96, 40),
        (2, 8, 4096, 1024),
    ):
        x_TX = draw.normal(tokens, groups * inputs + 8, dtype=dtype)[:, 8:]
        num_real = max(1, tokens - 2)
        x_TX[num_real:] = torch.nan
        weight_GOI = draw.normal(groups, outputs, inputs, dtype=dtype, scale=inputs**-0.5)
        sizes = {"num_groups": groups, "in_features": inputs, "out_features": outputs}
        yield Case(
            label=f"{tokens} tokens, {groups} groups of {inputs} to {outputs}",
            spec=bench.spec(sizes),
            args=(x_TX, weight_GOI),
            num_real=num_real,
        )
