"""Cases of what convolutional encoders compute."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from headstock.ops.cases.base import Bench, Case


def lay_out_cases(bench: Bench) -> Iterator[Case]:
    """Yield one patch and several, of one pixel and of more, of one image and of two."""
    draw = bench.draw()
    for images, height, width, channels, side in (
        (1, 1, 1, 3, 1),
        (1, 2, 3, 3, 4),
        (2, 3, 2, 1, 5),
    ):
        x_NP = draw.normal(images * height * width, channels * side**2, dtype=bench.dtype)
        yield Case(
            label=f"{images} x {height} x {width} patches of {side} x {side}, {channels} channels",
            spec=bench.spec({}),
            args=(x_NP,),
            kwargs={"height": height, "width": width, "channels": channels},
        )


def convolve_cases(bench: Bench) -> Iterator[Case]:
    """Yield kernels of single features and of all, both strides, odd maps, with a bias and not."""
    draw, dtype = bench.draw(), bench.dtype
    for inputs, outputs, group in ((3, 16, 3), (24, 24, 1), (8, 12, 4)):
        for size, stride in ((1, 1), (3, 1), (3, 2), (5, 2)):
            for height, width in ((6, 6), (5, 7)):
                kernel = draw.normal(outputs, group, size, size, dtype=dtype)
                bias_O = draw.normal(outputs, dtype=dtype) if stride == 2 else None
                sizes = {"out_features": outputs, "group": group, "kernel": size}
                yield Case(
                    label=f"{inputs} to {outputs} by {group}, kernel {size}, stride {stride}, maps"
                    f" of {height} x {width}",
                    spec=bench.spec(sizes),
                    args=(draw.normal(2 * height * width, inputs, dtype=dtype), kernel, bias_O),
                    kwargs={"height": height, "width": width, "stride": stride},
                )


def attend_cases(bench: Bench) -> Iterator[Case]:
    """Yield one map and several, one place and many, keys of as many places and of fewer."""
    draw, dtype = bench.draw(), bench.dtype
    for num_maps, queries, keys in ((1, 1, 1), (2, 36, 9), (3, 25, 25)):
        for num_heads, head_dim in ((2, 16), (12, 64), (3, 96)):
            made: list[torch.Tensor] = [
                draw.normal(num_maps * count, width, dtype=dtype)
                for count, width in (
                    (queries, num_heads * head_dim),
                    (keys, head_dim),
                    (keys, head_dim),
                )
            ]
            yield Case(
                label=f"{num_maps} maps, {queries} places and {keys}, {num_heads} heads of"
                f" {head_dim}",
                spec=bench.spec({"num_heads": num_heads, "head_dim": head_dim}),
                args=tuple(made),
                kwargs={"num_maps": num_maps, "num_heads": num_heads},
            )
