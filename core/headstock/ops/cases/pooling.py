"""Cases of pooling."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.base import Spec
from headstock.ops.cases.base import Bench, Case

KINDS = ("last", "mean", "cls")


def pool_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows of one token and of many, some of them pooled, hidden states cut to last tokens.

    A row that is not pooled, and what lies past the last row, may hold anything.
    """
    for kind in KINDS:
        for starts, rows in (([0, 1], [0]), ([0, 5, 6, 20, 33], [2, 0, 3]), ([0, 1, 2, 3], [1])):
            for size in (1, 64, 577):
                yield _case(bench, kind, starts, rows, size, is_normalized=size != 64)
        yield _case(bench, kind, [0, 300], [0], 1024, is_normalized=True)
        yield _case(bench, kind, [0, 3, 5], [0, 1], 48, is_normalized=True, scale=0.0)
    yield _case(bench, "last", [0, 5, 6, 20, 33], [2, 0], 96, is_normalized=True, is_cut=True)


def normalize_cases(bench: Bench) -> Iterator[Case]:
    """Yield vectors of many lengths, of none, and of no vector at all."""
    for num_vectors, size, scale in ((1, 1, 1.0), (3, 64, 1e-3), (5, 577, 10.0), (2, 48, 0.0)):
        vectors_PD = bench.draw().normal(num_vectors, size, dtype=torch.float32, scale=scale)
        yield Case(
            label=f"{num_vectors} vectors of {size} features by {scale}",
            spec=Spec(dtype="float32", sizes={"size": size}),
            args=(vectors_PD,),
            kwargs={},
        )


def _case(
    bench: Bench,
    kind: str,
    starts: list[int],
    rows: list[int],
    size: int,
    *,
    is_normalized: bool,
    scale: float = 1.0,
    is_cut: bool = False,
) -> Case:
    num_rows = len(starts) - 1
    num_tokens = num_rows if is_cut else starts[-1] + 3
    hidden_TD = bench.draw().normal(num_tokens, size, dtype=bench.dtype, scale=scale)
    if not is_cut:
        hidden_TD[starts[-1] :] = torch.nan
        for row in set(range(num_rows)) - set(rows):
            hidden_TD[starts[row] : starts[row + 1]] = torch.nan
    where = bench.device.torch_device
    cut = ", last tokens alone" if is_cut else ""
    return Case(
        label=f"{kind} of {len(rows)} of {num_rows} rows, {size} features{cut}",
        spec=bench.spec({"size": size}),
        args=(
            hidden_TD,
            torch.tensor(starts, dtype=torch.int32, device=where),
            torch.tensor(rows, dtype=torch.int64, device=where),
        ),
        kwargs={"kind": kind, "is_normalized": is_normalized},
    )
