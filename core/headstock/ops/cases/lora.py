"""Cases of the op ``add_lora``: decodes, prompts, parts, ranks, padding that is no number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from headstock.ops.cases.base import Bench, Case, Draw

NUM_PLACES = 3


def lora_cases(bench: Bench) -> Iterator[Case]:
    """Yield products of tokens with several adapters, one, and none."""
    some = (1, 0, 3, 1, 2, 0, 0, 3, 3)
    yield _case(bench, "decode, an adapter a row", some, 64, (96,), 16)
    yield _case(bench, "one token", (2,), 64, (96,), 16)
    yield _case(bench, "no adapter", (0,) * 9, 64, (96,), 16)
    yield _case(bench, "a prompt of one adapter", (3,) * 70, 64, (96,), 16)
    yield _case(bench, "prompts side by side", (*(1,) * 21, *(0,) * 30, *(2,) * 44), 64, (96,), 16)
    yield _case(bench, "many prompts", ((*(1,) * 50, *(2,) * 60, 0, 3) * 3), 48, (80,), 32)
    yield _case(bench, "a long prompt", (*(3,) * 500, *(0,) * 100, *(1,) * 430), 16, (24,), 16)
    yield _case(bench, "three parts", some, 128, (64, 32, 32), 16)
    yield _case(bench, "two parts", (1, 2) * 20, 64, (100, 100), 32)
    for size_in, sizes in ((1, (1,)), (100, (257,)), (576, (40, 8, 8)), (1300, (96,))):
        label = f"{size_in} in, {sum(sizes)} out"
        yield _case(bench, label, some, size_in, sizes, 16)
    yield _case(bench, "rank 64", some, 192, (128,), 64)
    yield _padded(bench)


def _case(
    bench: Bench,
    label: str,
    adapters: tuple[int, ...],
    size_in: int,
    sizes: tuple[int, ...],
    rank: int,
) -> Case:
    draw, num_tokens = bench.draw(4), len(adapters)
    args = (
        draw.normal(num_tokens, sum(sizes), dtype=bench.dtype),
        draw.normal(num_tokens, size_in, dtype=bench.dtype),
        *_stacks(draw, bench.dtype, size_in, sizes, rank),
        torch.tensor(adapters, dtype=torch.int32, device=draw.device),
    )
    return _of(bench, label, args, sizes)


def _stacks(
    draw: Draw, dtype: torch.dtype, size_in: int, sizes: tuple[int, ...], rank: int
) -> tuple[Tensor, Tensor]:
    """Draw adapters whose additions have unit deviation; the second one's rank is half."""
    inner = len(sizes) * rank
    down_NKI = draw.normal(NUM_PLACES, inner, size_in, dtype=dtype, scale=size_in**-0.5)
    up_NOR = draw.normal(NUM_PLACES, sum(sizes), rank, dtype=dtype, scale=rank**-0.5)
    up_NOR[1, :, rank // 2 :] = 0
    down_NKI[1].view(len(sizes), rank, size_in)[:, rank // 2 :] = 0
    return down_NKI, up_NOR


def _padded(bench: Bench) -> Case:
    """Return a step whose padding rows, which have no adapter, are not numbers."""
    draw, sizes = bench.draw(5), (48, 24)
    out_TO = draw.normal(40, 72, dtype=bench.dtype)
    x_TI = draw.normal(40, 80, dtype=bench.dtype)
    adapters_T = draw.integers(40, high=NUM_PLACES + 1, dtype=torch.int32)
    adapters_T[33:] = 0
    out_TO[33:], x_TI[33:] = torch.nan, torch.nan
    x_TI[adapters_T == 0] = torch.nan
    args = (out_TO, x_TI, *_stacks(draw, bench.dtype, 80, sizes, 16), adapters_T)
    return _of(bench, "padding", args, sizes, num_real=33)


def _of(
    bench: Bench,
    label: str,
    args: tuple[Tensor, ...],
    sizes: tuple[int, ...],
    *,
    num_real: int | None = None,
) -> Case:
    starts = tuple(sum(sizes[:part]) for part in range(len(sizes)))
    spec = bench.spec(
        {
            "in_features": args[1].shape[1],
            "out_features": sum(sizes),
            "rank": args[3].shape[2],
            "parts": len(sizes),
        }
    )
    return Case(
        label=label,
        spec=spec,
        args=args,
        kwargs={"starts": starts},
        writes=frozenset({0}),
        num_real=num_real,
    )
