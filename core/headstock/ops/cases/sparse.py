"""Cases of features of which only the highest count."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case


def moment_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, and columns of a wider tensor."""
    for label, x_TF in _inputs(bench):
        yield Case(label=label, spec=bench.spec({}), args=(x_TF,))


def keep_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same, with half, few and most of the features kept."""
    for label, x_TF in _inputs(bench):
        x32_TF = x_TF.float()
        sums_T2 = torch.stack((x32_TF.sum(1), x32_TF.square().sum(1)), dim=1)
        for deviations in (0.0, 1.645, -0.5):
            yield Case(
                label=f"{label}, {deviations} deviations",
                spec=bench.spec({}),
                args=(x_TF, sums_T2),
                kwargs={"width": x_TF.shape[1], "deviations": deviations},
            )


def _inputs(bench: Bench) -> Iterator[tuple[str, Tensor]]:
    draw, dtype = bench.draw(), bench.dtype
    for tokens, size in ((1, 64), (33, 96), (5, 7)):
        yield f"{tokens} tokens of {size}", draw.normal(tokens, size, dtype=dtype, scale=2)
    yield "columns of a wider tensor", draw.normal(5, 192, dtype=dtype)[:, 32:96]
