"""Cases of the ops of image encoders."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case


def pixel_cases(bench: Bench) -> Iterator[Case]:
    """Yield black, white and everything between, in one channel and three."""
    draw = bench.draw()
    for channels in (1, 3):
        pixels_NP = draw.integers(5, channels * 8, high=256, dtype=torch.uint8)
        yield Case(
            label=f"{channels} channels",
            spec=bench.spec({}),
            args=(pixels_NP, draw.uniform(channels) / 100, draw.uniform(channels, low=-2)),
            kwargs={"dtype": bench.dtype},
        )


def resample_cases(bench: Bench) -> Iterator[Case]:
    """Yield weights of four neighbours, and of one alone."""
    draw, dtype = bench.draw(), bench.dtype
    for num_patches, size, near in ((1, 8, 4), (33, 64, 4), (33, 64, 1)):
        weights_NB = draw.uniform(num_patches, near)
        weights_NB[0] = torch.eye(near)[0]
        yield Case(
            label=f"{num_patches} patches of {size}, {near} near each",
            spec=bench.spec({"size": size}),
            args=(
                draw.normal(num_patches, size, dtype=dtype),
                draw.normal(16, size, dtype=dtype),
                draw.integers(num_patches, near, high=16),
                weights_NB / weights_NB.sum(dim=1, keepdim=True),
            ),
        )


def mix_cases(bench: Bench) -> Iterator[Case]:
    """Yield sums of four patches and of one, more of them than there are patches, and fewer."""
    draw = bench.draw()
    for num_patches, count, size, near in ((1, 1, 8, 4), (9, 33, 64, 4), (40, 7, 24, 1)):
        weights_MB = draw.uniform(count, near)
        weights_MB[0] = torch.eye(near)[0]
        yield Case(
            label=f"{count} of {num_patches} patches of {size}, {near} near each",
            spec=bench.spec({"size": size}),
            args=(
                draw.normal(num_patches, size, dtype=bench.dtype),
                draw.integers(count, near, high=num_patches),
                weights_MB / weights_MB.sum(dim=1, keepdim=True),
            ),
        )


def mean_cases(bench: Bench) -> Iterator[Case]:
    """Yield one patch by itself, squares, and all of an image."""
    draw = bench.draw()
    for num_patches, count, size in ((3, 1, 8), (48, 16, 64), (36, 36, 24)):
        yield Case(
            label=f"{num_patches} patches by {count}",
            spec=bench.spec({"size": size}),
            args=(draw.normal(num_patches, size, dtype=bench.dtype),),
            kwargs={"count": count},
        )


def attention_cases(bench: Bench) -> Iterator[Case]:
    """Yield runs of one patch and of many, one run and several, odd head sizes, no rotation."""
    draw, dtype = bench.draw(), bench.dtype
    for lengths in ((1,), (4,), (64,), (16, 1, 100), (130, 4, 4)):
        for num_heads, head_dim in ((2, 16), (3, 72), (4, 64)):
            count = sum(lengths)
            angles = draw.uniform(count, head_dim // 2, low=-3, high=3)
            qkv_NC = draw.normal(count, 3 * num_heads * head_dim, dtype=dtype)
            turned = torch.cat((angles.cos(), angles.sin()), dim=1)
            for name, angles_NE in (("", turned), (", not rotated", None)):
                yield Case(
                    label=f"runs of {lengths}, {num_heads} heads of {head_dim}{name}",
                    spec=bench.spec({"num_heads": num_heads, "head_dim": head_dim}),
                    args=(qkv_NC, angles_NE),
                    kwargs={"lengths": lengths, "num_heads": num_heads},
                )


def lead_cases(bench: Bench) -> Iterator[Case]:
    """Yield one run and several, of one patch and of more."""
    draw, dtype = bench.draw(), bench.dtype
    for lengths, size in (((1,), 8), ((5, 1, 16), 64)):
        yield Case(
            label=f"runs of {lengths}",
            spec=bench.spec({"size": size}),
            args=(draw.normal(sum(lengths), size, dtype=dtype), draw.normal(size, dtype=dtype)),
            kwargs={"lengths": lengths},
        )


def behind_cases(bench: Bench) -> Iterator[Case]:
    """Yield runs with something behind their first row, and with nothing."""
    for lengths, size in (((2,), 8), ((5, 1, 17), 64)):
        yield Case(
            label=f"runs of {lengths}",
            spec=bench.spec({"size": size}),
            args=(bench.draw().normal(sum(lengths), size, dtype=bench.dtype),),
            kwargs={"lengths": lengths},
        )


def take_cases(bench: Bench) -> Iterator[Case]:
    """Yield one row, all in another order, and some of them."""
    draw = bench.draw()
    for num_patches, count, size in ((1, 1, 8), (36, 36, 64), (40, 9, 24)):
        yield Case(
            label=f"{count} of {num_patches} patches",
            spec=bench.spec({"size": size}),
            args=(
                draw.normal(num_patches, size, dtype=bench.dtype),
                torch.randperm(num_patches, generator=draw.generator)[:count].to(draw.device),
            ),
        )
