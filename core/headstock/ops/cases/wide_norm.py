"""Cases of norms over all heads."""

from __future__ import annotations

from collections.abc import Iterator

from headstock.ops.cases.base import Bench, Case

SHAPES = ((1, 64, 32), (5, 24, 24), (33, 512, 64), (2, 2048, 256))


def square_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts and sizes."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for num_tokens, q_size, k_size in SHAPES:
        args = (draw.normal(num_tokens, q_size + 2 * k_size, dtype=dtype),)
        sizes = {"q_size": q_size, "k_size": k_size}
        yield Case(label=f"{num_tokens} tokens", spec=spec, args=args, kwargs=sizes)


def norm_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, sizes, and ranks that hold a part."""
    draw, dtype, spec = bench.draw(), bench.dtype, bench.spec({})
    for number, (num_tokens, q_size, k_size) in enumerate(SHAPES, 1):
        qkv_TC = draw.normal(num_tokens, q_size + 2 * k_size, dtype=dtype)
        squares_T2 = draw.uniform(num_tokens, 2, low=1, high=9)
        weights = draw.normal(q_size, dtype=dtype), draw.normal(k_size, dtype=dtype)
        yield Case(
            label=f"{num_tokens} tokens, one of {number} ranks",
            spec=spec,
            args=(qkv_TC, squares_T2, *weights),
            kwargs={"q_width": number * q_size, "k_width": number * k_size, "eps": 1e-6},
            writes=frozenset({0}),
        )
