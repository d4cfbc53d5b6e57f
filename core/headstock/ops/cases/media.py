"""Cases of the ops that bring images into a step."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.base import Spec
from headstock.ops.cases.base import Bench, Case

TABLE = Spec(dtype="float32")


def angles_cases(bench: Bench) -> Iterator[Case]:
    """Yield one, two and three axes, interleaved and in sections, with positions and without."""
    if bench.dtype != torch.float32:
        return
    draw = bench.draw()
    where = bench.device.torch_device
    for label, axes in (
        ("one axis", [0] * 8),
        ("three axes, interleaved", [0, 1, 2, 0, 1, 2, 0, 0]),
        ("two axes, halves", [0, 0, 0, 0, 1, 1, 1, 1]),
    ):
        for num_tokens in (1, 33):
            table_LC = draw.uniform(64, 16, low=-1)
            num_axes = max(axes) + 1
            shifts_AT = draw.integers(num_axes, num_tokens, low=-20, high=20, dtype=torch.int32)
            axis_F = torch.tensor(axes, device=where)
            positions_T = draw.integers(num_tokens, high=40)
            for positions in (positions_T, None):
                yield Case(
                    label=f"{label}, {num_tokens} tokens, positions: {positions is not None}",
                    spec=TABLE,
                    args=(table_LC, shifts_AT, axis_F, positions),
                )


def place_cases(bench: Bench) -> Iterator[Case]:
    """Yield all tokens, some and none with features, of wide and of narrow rows."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, size, extra in ((1, 8, 0), (7, 64, 0), (130, 96, 192)):
        for low in (-1, 0):
            x_TD = draw.normal(num_tokens, size, dtype=dtype)
            features_MF = draw.normal(40, size + extra, dtype=dtype)
            rows_T = draw.integers(num_tokens, low=low, high=1 if low else 40, dtype=torch.int32)
            yield Case(
                label=f"{num_tokens} tokens of {size} from rows of {size + extra}, low {low}",
                spec=bench.spec({"size": size}),
                args=(x_TD, features_MF, rows_T),
            )


def replace_cases(bench: Bench) -> Iterator[Case]:
    """Yield all tokens, some and none with features."""
    draw = bench.draw()
    for num_tokens, low, high in ((1, 0, 40), (7, -1, 0), (130, -40, 40)):
        ids_T = draw.integers(num_tokens, high=300)
        rows_T = draw.integers(num_tokens, low=low, high=high, dtype=torch.int32)
        yield Case(
            label=f"{num_tokens} tokens, rows from {low}",
            spec=bench.spec({}),
            args=(ids_T, rows_T),
            kwargs={"other": 5},
        )


def add_cases(bench: Bench) -> Iterator[Case]:
    """Yield the same with features from within the rows."""
    for case in place_cases(bench):
        x_TD, features_MF, _ = case.args
        offset = features_MF.shape[1] - x_TD.shape[1]
        yield Case(label=case.label, spec=case.spec, args=case.args, kwargs={"offset": offset})


def store_cases(bench: Bench) -> Iterator[Case]:
    """Yield rows that lie apart."""
    draw, dtype = bench.draw(), bench.dtype
    rows_N = torch.tensor([5, 0, 7, 2], device=bench.device.torch_device)
    yield Case(
        label="rows apart",
        spec=bench.spec({"size": 24}),
        args=(draw.normal(4, 24, dtype=dtype), rows_N, draw.normal(9, 24, dtype=dtype)),
        writes=frozenset({2}),
    )
