"""Cases of embeddings with learned positions, and of ids that other tables have."""

from __future__ import annotations

from collections.abc import Iterator

from headstock.ops.cases.base import Bench, Case


def place_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, one type and two, and places that begin later."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, size, types, first in ((1, 64, 1, 0), (17, 384, 2, 0), (130, 7, 2, 2)):
        tables = (
            draw.normal(50, size, dtype=dtype),
            draw.normal(40, size, dtype=dtype),
            draw.normal(types, size, dtype=dtype),
        )
        ids_T = draw.integers(num_tokens, high=50 * types)
        positions_T = draw.integers(num_tokens, high=40 - first)
        yield Case(
            label=f"{num_tokens} tokens of {size}, {types} types",
            spec=bench.spec({"size": size}),
            args=(ids_T, positions_T, *tables),
            kwargs={"first_place": first},
        )


def known_cases(bench: Bench) -> Iterator[Case]:
    """Yield ids all, some and none of which there are rows for."""
    draw = bench.draw()
    for num_tokens, size in ((1, 300), (33, 100), (130, 1)):
        label = f"{num_tokens} tokens, {size} rows"
        ids_T = draw.integers(num_tokens, high=300)
        yield Case(label=label, spec=bench.spec({}), args=(ids_T,), kwargs={"size": size})


def row_cases(bench: Bench) -> Iterator[Case]:
    """Yield ids before, among and behind those that the table has, and sizes of all kinds."""
    draw, dtype = bench.draw(), bench.dtype
    for num_tokens, size, first, count in ((1, 64, 20, 3), (33, 7, 0, 40), (130, 576, 90, 10)):
        yield Case(
            label=f"{num_tokens} tokens of {size}, {count} rows from {first}",
            spec=bench.spec({"size": size}),
            args=(
                draw.normal(num_tokens, size, dtype=dtype),
                draw.integers(num_tokens, high=100),
                draw.normal(count, size, dtype=dtype),
            ),
            kwargs={"first": first},
        )
