"""Products with dense and FP8 weights, and the card's limits."""

import itertools
from functools import partial

import torch
from torch.nn.functional import linear

from cuda_parts.timing import BF16, DEVICE, Here, Report, copies_for, randn
from headstock.ops.linear import FP8_GROUP, LinearSpec
from headstock_triton.fp8 import build_fp8
from headstock_triton.gemv import GemvTuning, choose_tuning, gemv
from headstock_triton.target import Target


def part_limits(report: Report) -> None:
    x = [torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
    report.time("copy 1 GiB", [lambda: x[0].copy_(x[1])], num_bytes=2 << 30)
    y = randn(1 << 29)
    report.time("sum 1 GiB", [lambda: y.sum()], num_bytes=1 << 30)
    a, b = randn(8192, 8192), randn(8192, 8192)
    report.time("gemm 8192^3", [lambda: a @ b], flops=2 * 8192**3)
    empty = torch.zeros(32, device=DEVICE)
    report.time("empty kernel", [lambda: empty.add_(1)] * 32)


MATRICES = {
    "0.6B qkv": (4096, 1024),
    "0.6B o": (1024, 2048),
    "0.6B gate_up": (6144, 1024),
    "0.6B down": (1024, 3072),
    "lm_head 0.6B": (151936, 1024),
    "8B qkv": (6144, 4096),
    "8B o": (4096, 4096),
    "8B gate_up": (24576, 4096),
    "8B down": (4096, 12288),
}


def part_gemv(report: Report) -> None:
    target = Target.of(Here())
    for case, (out, size) in MATRICES.items():
        num_bytes = out * size * 2
        weights = [randn(out, size) for _ in range(copies_for(num_bytes))]
        for rows in (1, 2, 4, 8, 16, 32, 64, 256, 512):
            x = randn(rows, size)
            calls = [lambda w=w, x=x: linear(x, w) for w in weights]
            report.time("cublas", calls, num_bytes=num_bytes, case=f"{case} M={rows}")
        for rows in (1, 2, 4):
            x = randn(rows, size)
            if report.shard is None:
                error = (
                    gemv(x, weights[0], None, target).double() - x.double() @ weights[0].double().T
                ).norm()
                report.add(
                    "gemv error",
                    case=f"{case} M={rows}",
                    error=float(error / (x.double() @ weights[0].double().T).norm()),
                )
            tunings = gemv_tunings(size, rows)
            default = choose_tuning(rows, out, size)
            for tuning in dict.fromkeys([default, *tunings]):
                calls = [lambda w=w, x=x, t=tuning: gemv(x, w, None, target, t) for w in weights]
                shape = (tuning.block_o, tuning.block_i, tuning.warps)
                report.time(
                    "gemv",
                    calls,
                    num_bytes=num_bytes,
                    case=f"{case} M={rows}",
                    tuning=shape,
                    is_default=tuning == default,
                )
    report.best("gemv")


def gemv_tunings(size: int, rows: int) -> list[GemvTuning]:
    return [
        GemvTuning(block_o, 256 * warps, warps)
        for block_o, warps in itertools.product((2, 4, 8), (1, 2, 4))
        if 4 <= block_o * rows <= 8 and 256 * warps <= size
    ]


def part_gemm(report: Report) -> None:
    """Time the library on the matrices of a prefill, long enough to meet the power limit."""
    for reduced in (False, True):
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced
        for case, (out, size) in MATRICES.items():
            if case.startswith("lm_head"):
                continue
            weights = [randn(out, size) * size**-0.5 for _ in range(4)]
            for rows in (256, 512, 8192, 16384):
                x = randn(rows, size)
                calls = [lambda w=w, x=x: linear(x, w) for w in weights] * (8 if rows > 512 else 1)
                flops = 2 * rows * out * size
                facts = {"case": f"{case} M={rows}", "reduced": reduced}
                report.time("gemm", calls, flops=flops, num_bytes=out * size * 2, **facts)


def part_fp8(report: Report) -> None:
    """Try the library's scaled products: one scale a row and column, or a block."""
    for case, (out, size) in MATRICES.items():
        if case.startswith("lm_head"):
            continue
        for rows in (16, 256, 8192):
            x = torch.randn(rows, size, device=DEVICE).to(torch.float8_e4m3fn)
            w = torch.randn(out, size, device=DEVICE).to(torch.float8_e4m3fn)
            right = x.float() @ w.float().T
            ones_m, ones_o = (torch.ones(n, 1, device=DEVICE) for n in (rows, out))
            groups = size // 128
            block_w = torch.ones(out // 128, groups, device=DEVICE)
            block_x = torch.ones(groups, rows, device=DEVICE).t()
            ways = {
                "rowwise": (ones_m, ones_o.t()),
                "block": (block_x, block_w.t()),
                "group": (block_x, torch.ones(groups, out, device=DEVICE)),
            }
            for name, (scale_x, scale_w) in ways.items():

                def call(x=x, w=w, a=scale_x, b=scale_w, is_fast=name == "rowwise"):
                    return torch._scaled_mm(
                        x,
                        w.t(),
                        scale_a=a,
                        scale_b=b,
                        out_dtype=BF16,
                        use_fast_accum=is_fast,
                    )

                facts = {"case": f"{case} M={rows}", "way": name}
                us = report.time("fp8", [call] * 8, flops=2 * rows * out * size, **facts)
                if us is not None:
                    provider = build_fp8(
                        LinearSpec(
                            in_features=size,
                            out_features=out,
                            dtype=BF16,
                            layout=FP8_GROUP,
                            group_size=128,
                        ),
                        Here(),
                    )
                    xb = randn(rows, size)
                    report.time("fp8 provider", [partial(provider, xb)] * 8, **facts)
                    error = (call().float() - right).norm() / right.norm()
                    report.add("fp8 error", error=float(error), **facts)
