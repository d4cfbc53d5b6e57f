"""Products with weights of integers."""

import itertools
from functools import partial

import torch
import triton
from torch.nn.functional import linear

from cuda_parts.products import MATRICES
from cuda_parts.timing import BF16, DEVICE, Here, Report, copies_for, randn
from headstock.ops.canonical import dequantize
from headstock.ops.linear import INT4_GROUP, INT8_GROUP, LinearSpec
from headstock_triton.ints import FEW_ROWS, IntLinear, Tiling, WarpTile, build_int

INT_MATRICES = [case for case in MATRICES if case.startswith("8B")]
INT_FORMS = ((INT4_GROUP, 128), (INT8_GROUP, 32))
INT_ROWS = (1, 4, 16, 64, 256, 2048)


def make_int(layout: str, group_size: int, out: int, size: int) -> tuple[IntLinear, dict, int]:
    """Return a matrix of random integers, and its last canonical rows with where they begin."""
    spec = LinearSpec(
        in_features=size,
        out_features=out,
        dtype=BF16,
        layout=layout,
        group_size=group_size,
    )
    built, step = build_int(spec, Here()), 2048
    columns, kind = (size // 2, torch.uint8) if layout == INT4_GROUP else (size, torch.int8)
    limits = (0, 256) if layout == INT4_GROUP else (-127, 128)
    for begin in range(0, out, step):
        rows = min(step, out - begin)
        scale = (torch.rand(rows, size // group_size, device=DEVICE) + 0.5) * size**-0.5
        part = {"weight": torch.randint(*limits, (rows, columns), dtype=kind, device=DEVICE)}
        part |= {"scale": scale / (4 if layout == INT4_GROUP else 64)}
        if layout == INT4_GROUP:
            part["minimum"] = part["scale"] * -8
        built.load(part, begin)
    return built, part, begin


def more_ints(like: IntLinear) -> list[IntLinear]:
    """Return matrices that outgrow the L2 cache together with ``like``."""
    spec = like._spec
    sizes = (spec.layout, spec.group_size, spec.out_features, spec.in_features)
    return [make_int(*sizes)[0] for _ in range(copies_for(like.num_bytes) - 1)]


def part_ints(report: Report) -> None:
    """Time the providers as they choose, against the library on the same matrix in bfloat16."""
    for case, (layout, group_size) in itertools.product(INT_MATRICES, INT_FORMS):
        out, size = MATRICES[case]
        first, part, begin = make_int(layout, group_size, out, size)
        ours = [first, *more_ints(first)]
        dense = [randn(out, size) * size**-0.5 for _ in range(copies_for(out * size * 2))]
        for rows in INT_ROWS:
            x = randn(rows, size)
            facts = {"case": f"{case} M={rows}", "layout": layout}
            flops = 2 * rows * out * size if rows >= 64 else 0
            calls = [partial(linear, x, w) for w in dense]
            report.time("bf16", calls, num_bytes=out * size * 2, flops=flops, **facts)
            calls = [partial(w, x) for w in ours]
            report.time("ints", calls, num_bytes=first.num_bytes, flops=flops, **facts)
            if report.shard is None:
                right = x.double() @ dequantize(layout, part, torch.float64).T
                error = (first(x)[:, begin:].double() - right).norm() / right.norm()
                report.add("ints error", error=float(error), **facts)
        del ours, dense


def part_int_tilings(report: Report) -> None:
    """Try every way to multiply integers, and every tiling, with numbers of rows between."""
    for case, (layout, group_size) in itertools.product(INT_MATRICES, INT_FORMS):
        out, size = MATRICES[case]
        first, *_ = make_int(layout, group_size, out, size)
        ours = [first, *more_ints(first)]
        for rows in (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
            x = randn(rows, size)
            facts = {"case": f"{case} {layout} M={rows}", "num_bytes": first.num_bytes}
            for block_o in (2, 4, 8) if rows <= 2 * FEW_ROWS else ():
                calls = [partial(w.by_few_rows, x, block_o) for w in ours]
                report.time("int ways", calls, way="few rows", tiling=block_o, **facts)
            for tile in warp_tiles(rows):
                calls = [partial(w.by_warps, x, tile) for w in ours]
                report.time("int ways", calls, way="warps", tiling=str(tile), **facts)
            for tiling in int_tilings(rows):
                calls = [partial(w.by_tiles, x, tiling) for w in ours]
                report.time("int ways", calls, way="tiles", tiling=str(tiling), **facts)
            if rows >= 64:
                calls = [partial(w.by_library, x) for w in ours]
                report.time("int ways", calls, way="library", **facts)
        del ours
    report.best("int ways")


def warp_tiles(rows: int) -> list[WarpTile]:
    block_m = max(8, min(32, triton.next_power_of_2(rows)))
    if rows > 64:
        return []
    warps = ((4, 1), (8, 1), (2, 2), (4, 2), (2, 4))
    return [
        WarpTile(block_m, each * abreast, count, abreast)
        for each, (count, abreast) in itertools.product((16, 32), warps)
        if block_m * each <= 512
    ]


def int_tilings(rows: int) -> list[Tiling]:
    block_m = max(16, min(128, triton.next_power_of_2(rows)))
    if not 3 <= rows <= 512:
        return []
    shapes = ((64, 4), (128, 8), (128, 4)) if block_m >= 64 else ((64, 4), (128, 8))
    stages = (2,) if block_m == 128 else (2, 3, 4) if block_m <= 32 else (2, 3)
    splits = (1, 2, 4, 8) if rows <= 64 else (1, 2)
    return [
        Tiling(block_m, block_o, split, warps, stage)
        for (block_o, warps), split, stage in itertools.product(shapes, splits, stages)
    ]
