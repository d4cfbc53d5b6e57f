"""Time the CUDA kernels against the card's limits and PyTorch's own: `python cuda_kernels.py PART`.

Every figure is the median over replays of a graph that runs the kernel several times over
rotating inputs, larger together than the L2 cache where the kernel is bound by memory.
`--compile I/N` launches the part's kernels once without timing, every N-th from the I-th on, so
that several processes fill Triton's disk cache together.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
import triton
from torch.nn.functional import linear, scaled_dot_product_attention

from headstock.ops.attention import AttentionSpec, StepBatch
from headstock.ops.canonical import dequantize
from headstock.ops.linear import INT4_GROUP, INT8_GROUP, LinearSpec
from headstock.ops.moe import ExpertsSpec
from headstock.ops.norm import rms_norm
from headstock.ops.sampling import add_bias, apply_penalties, draw_tokens, token_logprobs
from headstock_triton import moe
from headstock_triton.activation import Activations
from headstock_triton.attention.provider import PagedAttention, Tuning
from headstock_triton.dense import build_dense
from headstock_triton.fp8 import build_fp8
from headstock_triton.gemv import GemvTuning, choose_tuning, gemv
from headstock_triton.ints import FEW_ROWS, IntLinear, Tiling, WarpTile, build_int
from headstock_triton.norm import Norms
from headstock_triton.rotary import Rotations
from headstock_triton.routing import Routing
from headstock_triton.sampling.argmax import Argmax
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import Logprobs
from headstock_triton.sampling.shaping import Shaping
from headstock_triton.target import Target

DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
L2_BYTES = 64 << 20
PDL = True


class Here:
    torch_device = DEVICE
    capabilities = frozenset({"sm_90"})
    num_threads = 1


class Report:
    """Prints each result as a line of JSON, and keeps them."""

    def __init__(self, shard: tuple[int, int] | None) -> None:
        self.rows: list[dict] = []
        self.shard = shard
        self.turn = 0

    def time(self, name: str, calls, *, num_bytes=0, flops=0, timer=None, **facts) -> float | None:
        """Time ``calls`` (functions of no arguments, or what makes them); report per call."""
        self.turn += 1
        if self.shard is not None and self.turn % self.shard[1] != self.shard[0]:
            return None
        try:
            made = calls() if callable(calls) else calls
            if self.shard is not None:
                made[0]()
                torch.cuda.synchronize()
                return None
            us = (timer or time_graph)(made)
            del made
        except Exception as error:  # noqa: BLE001 - one bad configuration is a result too
            self.add(name, error=f"{type(error).__name__}: {str(error)[:160]}", **facts)
            return None
        row = {"us": round(us, 2), **facts}
        if num_bytes:
            row["gb_s"] = round(num_bytes / us / 1e3)
        if flops:
            row["tflop_s"] = round(flops / us / 1e6, 1)
        self.add(name, **row)
        return us

    def add(self, name: str, **facts) -> None:
        row = {"name": name, **facts}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def best(self, name: str) -> None:
        """Say which of the rows called ``name`` is the fastest, by case."""
        cases: dict[str, list[dict]] = {}
        for row in self.rows:
            if row["name"] == name and "us" in row:
                cases.setdefault(str(row.get("case")), []).append(row)
        for case, rows in cases.items():
            top = sorted(rows, key=lambda r: r["us"])[:3]
            print(f"BEST {name} {case}: " + " | ".join(json.dumps(r) for r in top), flush=True)


def time_graph(calls, replays: int = 7) -> float:
    """Return the median microseconds of one of ``calls`` within a graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    repeats = max(1, 8 // len(calls))
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    times = []
    for _ in range(replays + 2):
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (repeats * len(calls)))
    return statistics.median(times[2:])


def time_eager(calls, repeats: int = 7) -> float:
    """Return the median microseconds of one of ``calls``, launched one by one: for long ones."""
    times = []
    for call in [*calls[:2], *calls * repeats]:
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times[2:])


def copies_for(num_bytes: int) -> int:
    """Return how many inputs together outgrow the L2 cache, within reason."""
    return max(2, min(64, -(-3 * L2_BYTES // max(num_bytes, 1))))


def randn(*shape, dtype=BF16):
    return torch.randn(shape, dtype=torch.float32, device=DEVICE).to(dtype)


# --- limits --------------------------------------------------------------------------------------


def part_limits(report: Report) -> None:
    x = [torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
    report.time("copy 1 GiB", [lambda: x[0].copy_(x[1])], num_bytes=2 << 30)
    y = randn(1 << 29)
    report.time("sum 1 GiB", [lambda: y.sum()], num_bytes=1 << 30)
    a, b = randn(8192, 8192), randn(8192, 8192)
    report.time("gemm 8192^3", [lambda: a @ b], flops=2 * 8192**3)
    empty = torch.zeros(32, device=DEVICE)
    report.time("empty kernel", [lambda: empty.add_(1)] * 32)


# --- products of few rows ------------------------------------------------------------------------

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


# --- products of many rows -----------------------------------------------------------------------


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
                            layout="fp8-group",
                            group_size=128,
                        ),
                        Here(),
                    )
                    xb = randn(rows, size)
                    report.time("fp8 provider", [partial(provider, xb)] * 8, **facts)
                    error = (call().float() - right).norm() / right.norm()
                    report.add("fp8 error", error=float(error), **facts)


# --- products with integers ----------------------------------------------------------------------

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


# --- attention -----------------------------------------------------------------------------------


def make_batch(queries, lengths, page_size, *, groups=(), max_kv=None) -> tuple[StepBatch, int]:
    """Build a step; ``groups`` are (rows, shared tokens) of neighbouring rows with equal pages."""
    rows = len(lengths)
    pages = [-(-length // page_size) for length in lengths]
    total = sum(pages)
    order = (torch.randperm(total) + 1).to(torch.int32)
    table = torch.zeros(rows, max(pages), dtype=torch.int32)
    at = 0
    for row, count in enumerate(pages):
        table[row, :count] = order[at : at + count]
        at += count
    nodes, first = [], 0
    for size, shared in groups:
        table[first : first + size, : shared // page_size] = table[first, : shared // page_size]
        nodes.append((first, first + size, 0, shared))
        first += size
    used, table = torch.unique(table, return_inverse=True)
    table = (table + int(used[0] != 0)).to(torch.int32)
    starts = torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32)
    tokens = int(starts[-1])
    positions = torch.cat([torch.arange(n - q, n) for q, n in zip(queries, lengths, strict=True)])
    row_of = torch.repeat_interleave(torch.arange(rows), torch.tensor(queries))
    slots = table[row_of, positions // page_size].long() * page_size + positions % page_size
    batch = StepBatch(
        num_tokens=tokens,
        num_rows=rows,
        max_query=max(queries),
        max_kv=max_kv or max(lengths),
        positions_T=positions.to(DEVICE),
        query_starts_R1=starts.to(DEVICE),
        kv_lengths_R=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        page_table_RP=table.to(DEVICE),
        write_slots_T=slots.to(DEVICE),
        row_of_token_T=row_of.int().to(DEVICE),
        counts=torch.tensor([rows, tokens, len(nodes)], dtype=torch.int32, device=DEVICE),
        tree_N4=torch.tensor(nodes, dtype=torch.int32).reshape(-1, 4).to(DEVICE),
        host_rows=[],
    )
    return batch, int(table.max()) + 1


def make_spec(heads, kv_heads, batch, page_size) -> AttentionSpec:
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        dtype=BF16,
        kv_dtype=BF16,
        page_size=page_size,
        scale=128**-0.5,
        max_length=32768,
        max_rows=max(batch.num_rows, 512),
        max_tokens=max(batch.num_tokens, 8192),
    )


def attention_calls(tuning, batch, num_pages, heads, kv_heads, page_size):
    """Return calls of single layers, the plan made beforehand, with layers enough to miss L2."""
    spec = make_spec(heads, kv_heads, batch, page_size)
    provider = PagedAttention(spec, Here(), tuning)
    shape = provider.kv_shape(num_pages)
    layer_bytes = torch.Size(shape).numel() * 2
    count = min(4, copies_for(layer_bytes))
    layers = [randn(*shape) for _ in range(count)]
    q = randn(batch.num_tokens, heads, 128)
    provider.plan(batch)
    provider.run(q, layers[0].new_empty(shape), batch)  # the leader: makes the lists
    return [lambda kv=kv: provider.run(q, kv, batch) for kv in layers]


DECODES = {
    "8B 1x384": (32, 8, [384]),
    "8B 1x4096": (32, 8, [4096]),
    "8B 8x16384": (32, 8, [16384] * 8),
    "8B 64x4096": (32, 8, [4096] * 64),
    "8B 256x1152": (32, 8, [1024 + i for i in range(256)]),
    "0.6B 1x384": (16, 8, [384]),
    "0.6B 256x1152": (16, 8, [1024 + i for i in range(256)]),
}


def part_decode(report: Report) -> None:
    for case, (heads, kv_heads, lengths) in DECODES.items():
        for page_size in (64, 16):
            batch, num_pages = make_batch([1] * len(lengths), lengths, page_size)
            num_bytes = sum(lengths) * kv_heads * 128 * 2 * 2
            tunings = [
                Tuning(tail=tail, decode_tma=tma, programs_per_sm=programs)
                for tail, tma, programs in itertools.product(
                    ((64, 4, 2), (64, 4, 3), (64, 4, 4), (128, 4, 2), (32, 4, 4), (64, 2, 3)),
                    (False, True),
                    (6,),
                )
                if not (tma and (page_size < tail[0] or tail[0] != 64))
            ]
            tunings += [Tuning(programs_per_sm=n) for n in (3, 4, 8, 12)]
            for tuning in tunings if page_size == 64 else [Tuning()]:
                calls = partial(
                    attention_calls, tuning, batch, num_pages, heads, kv_heads, page_size
                )
                report.time(
                    "decode",
                    calls,
                    num_bytes=num_bytes,
                    case=f"{case} page {page_size}",
                    tail=tuning.tail,
                    tma=tuning.decode_tma,
                    programs=tuning.programs_per_sm,
                )
    report.best("decode")


PREFILLS = {
    "8B 4x4096": (32, 8, [4096] * 4, [4096] * 4),
    "8B 1x8192 after 8192": (32, 8, [8192], [16384]),
    "8B 128x64 after 2048": (32, 8, [64] * 128, [2112] * 128),
    "0.6B 8x1024": (16, 8, [1024] * 8, [1024] * 8),
    "0.6B 1x128": (16, 8, [128], [128]),
}


def prefill_tunings(page_size: int) -> list[Tuning]:
    shapes = [
        ((64, 64, 4, 3), True, None),
        ((128, 64, 8, 3), True, None),
        ((128, 64, 8, 2), True, 128),
        ((128, 64, 8, 3), True, 128),
        ((128, 64, 8, 2), False, 128),
        ((128, 32, 8, 3), True, 128),
        ((128, 32, 8, 4), True, 128),
        ((64, 64, 4, 2), True, 168),
        ((64, 32, 4, 4), True, 168),
        ((128, 128, 8, 3), False, None),
    ]
    if page_size == 128:
        shapes = [((128, 128, 8, 2), True, None), ((64, 128, 4, 2), True, 240)]
    return [
        Tuning(
            prefill=shape,
            long_prefill=shape,
            prefill_tma=tma,
            long_registers=registers,
            long_queries=1 if registers else 1 << 30,
        )
        for shape, tma, registers in shapes
    ]


def part_prefill(report: Report) -> None:
    prefill(report, (64, 128), None)


def prefill(report: Report, page_sizes: tuple[int, ...], tunings: list[Tuning] | None) -> None:
    for case, (heads, kv_heads, queries, lengths) in PREFILLS.items():
        flops = (
            4
            * heads
            * 128
            * sum(q * (n - q) + q * (q + 1) // 2 for q, n in zip(queries, lengths, strict=True))
        )
        for page_size in page_sizes:
            batch, num_pages = make_batch(queries, lengths, page_size)
            for tuning in tunings or prefill_tunings(page_size):
                calls = partial(
                    attention_calls, tuning, batch, num_pages, heads, kv_heads, page_size
                )
                report.time(
                    "prefill",
                    calls,
                    flops=flops,
                    case=f"{case} page {page_size}",
                    prefill=tuning.prefill,
                    tma=tuning.prefill_tma,
                    registers=tuning.long_registers,
                )
    q, k = randn(4, 32, 4096, 128), randn(4, 8, 4096, 128)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        report.time(
            "sdpa cudnn",
            [lambda: scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)],
            flops=4 * 32 * 128 * 4 * 4096 * 4097 // 2,
            case="8B 4x4096",
        )
    report.best("prefill")


# --- optional libraries ---------------------------------------------------------------------------

LIBRARY_PREFILLS = {
    "8B 1x8192 causal": ([8192], [8192]),
    "8B 1x8192 after 8192": ([8192], [16384]),
    "8B 4x2048 after 4096": ([2048] * 4, [6144] * 4),
    "8B 7x1024 after 1024, 200 decode": ([1024] * 7 + [1] * 200, [2048] * 7 + [1152] * 200),
}
LIBRARY_DECODES = {
    "8B 256x1152": [1024 + i for i in range(256)],
    "8B 64x4096": [4096] * 64,
    "8B 8x16384": [16384] * 8,
}


def part_flash(report: Report) -> None:
    """Compare attention by optional libraries with ours; each result is checked before it is timed.

    A library that is not installed, or fails, is a line with its error.
    """
    for page_size, (case, (queries, lengths)) in itertools.product(
        (64, 128), LIBRARY_PREFILLS.items()
    ):
        seen = sum(q * (n - q) + q * (q + 1) // 2 for q, n in zip(queries, lengths, strict=True))
        facts = {"case": f"{case} page {page_size}", "timer": time_eager, "flops": 4 * 4096 * seen}
        for name, build in prefill_ways(page_size).items():
            compare(report, name, build, queries, lengths, page_size, facts)
    for case, lengths in LIBRARY_DECODES.items():
        facts = {"case": case, "num_bytes": sum(lengths) * 8 * 128 * 2 * 2}
        for name, build in {"triton": with_triton, "flashinfer": with_flashinfer}.items():
            compare(report, name, build, [1] * len(lengths), lengths, 64, facts)


def prefill_ways(page_size: int) -> dict:
    """Return builders by name. What provides is FlashAttention at pages of 64, by its own tile."""
    if page_size == 128:
        return {"triton": with_triton, "flash, whole pages": with_flash}
    return {
        "triton": with_triton,
        "flash": with_flash,
        "flash, whole pages": partial(with_flash, tile=(128, 64)),
    }


def with_triton(spec):
    return PagedAttention(spec, Here())


def with_flash(spec, tile=None):
    from flash_attn.cute import flash_attn_varlen_func, interface

    from headstock_cuda.flash_attention import FlashRows

    def attend_by_tile(*args, **kwargs):
        return interface._flash_attn_fwd(*args, **kwargs, tile_mn=tile)[:2]

    attend = attend_by_tile if tile else flash_attn_varlen_func
    return PagedAttention(spec, Here(), queries=FlashRows(spec, Here(), attend))


def with_flashinfer(spec):
    from headstock_cuda.flashinfer import build_flashinfer

    return build_flashinfer(spec, Here())


def compare(report: Report, name, build, queries, lengths, page_size, facts) -> None:
    """Build a provider, say how long it compiled, check a layer's result, and time it."""
    batch, num_pages = make_batch(queries, lengths, page_size)
    batch.host_rows = list(zip(queries, lengths, strict=True))
    case = facts["case"]
    try:
        provider = build(make_spec(32, 8, batch, page_size))
        start = time.perf_counter()
        provider.plan(batch)
        torch.cuda.synchronize()
        compile_s = round(time.perf_counter() - start, 2)
        layers = [randn(*provider.kv_shape(num_pages)) for _ in range(3)]
        q = randn(batch.num_tokens, 32, 128)
        out = provider.run(q, layers[0], batch)
        error = sampled_error(out, q, layers[0], batch, page_size)
    except Exception as failure:  # noqa: BLE001 - a library that fails is a result too
        report.add(name, case=case, error=f"{type(failure).__name__}: {str(failure)[:300]}")
        return
    report.add(f"{name} error", case=case, error=error, compile_s=compile_s)
    if error < 1e-2:
        report.time(name, [lambda kv=kv: provider.run(q, kv, batch) for kv in layers], **facts)


def sampled_error(out, q, kv, batch, page_size) -> float:
    """Return the relative error of some queries of each row against float32."""
    off = whole = 0.0
    for row, (queries, length) in enumerate(batch.host_rows):
        first = int(batch.query_starts_R1[row])
        some = torch.unique(torch.tensor([0, queries // 3, queries - 1], device=DEVICE))
        pages = kv[batch.page_table_RP[row, : -(-length // page_size)].long()].float()
        k, v = (
            pages[:, i].transpose(1, 2).flatten(0, 1)[:length].repeat_interleave(4, 1)
            for i in (0, 1)
        )
        scores = torch.einsum("qhd,lhd->hql", q[first + some].float(), k) * 128**-0.5
        is_later = torch.arange(length, device=DEVICE) > (length - queries + some)[:, None]
        weights = scores.masked_fill(is_later, -torch.inf).softmax(-1)
        right = torch.einsum("hql,lhd->qhd", weights, v)
        off += float((out[first + some].float() - right).square().sum())
        whole += float(right.square().sum())
    return (off / whole) ** 0.5


TREES = {
    "8B 512 rows, 32x2048 + 96": (32, 8, 32, 16, 2048, 96),
    "0.6B 512 rows, 32x2048 + 96": (16, 8, 32, 16, 2048, 96),
    "8B 256 rows, 1x4096 + 200": (32, 8, 1, 256, 4096, 200),
    "8B 4 rows, 1x4096 + 100": (32, 8, 1, 4, 4096, 100),
}


def part_tree(report: Report) -> None:
    for case, (heads, kv_heads, groups, members, shared, tail) in TREES.items():
        rows = groups * members
        lengths = [shared + tail] * rows
        page = 64
        plain, num_pages = make_batch(
            [1] * rows, lengths, page, groups=[(members, shared)] * groups
        )
        tree = plain.tree_N4
        plain.tree_N4, plain.counts = tree[:0], plain.counts.clone()
        plain.counts[2] = 0
        per_token = kv_heads * 128 * 2 * 2
        calls = partial(attention_calls, Tuning(), plain, num_pages, heads, kv_heads, page)
        report.time("no tree", calls, num_bytes=rows * (shared + tail) * per_token, case=case)
        shared_bytes = (groups * shared + rows * tail) * per_token
        for node, tail, chunk in itertools.product(
            ((64, 64, 4, 3), (64, 64, 4, 2)),
            ((64, 4, 3), (64, 2, 3), (64, 2, 2), (32, 4, 3), (32, 2, 3), (32, 2, 2), (64, 2, 1)),
            (256,),
        ):
            batch, num_pages = make_batch(
                [1] * rows, lengths, page, groups=[(members, shared)] * groups
            )
            tuning = Tuning(node=node, short_tail=tail, node_min_chunk=chunk)
            calls = partial(attention_calls, tuning, batch, num_pages, heads, kv_heads, page)
            report.time(
                "tree", calls, num_bytes=shared_bytes, case=case, node=node, tail=tail, chunk=chunk
            )
    report.best("tree")


# --- mixtures of experts ------------------------------------------------------------------------

QWEN3_30B_A3B = ExpertsSpec(
    hidden_size=2048, intermediate_size=768, num_experts=128, experts_per_token=8, dtype=BF16
)


def part_moe(report: Report) -> None:
    """Time the experts of a layer of Qwen3-30B-A3B, with choices as random logits make them."""
    spec = QWEN3_30B_A3B
    routing = Routing(Target.of(Here()))
    layers = [make_experts(spec) for _ in range(2)]
    for tokens in (1, 16, 64, 256, 2048, 8192):
        case = f"T={tokens}"
        x, logits = randn(tokens, spec.hidden_size), randn(tokens, spec.num_experts)
        route = partial(routing.route_topk, logits, k=spec.experts_per_token, is_normalized=True)
        report.time("route_topk", [route] * 8, num_bytes=logits.numel() * 2, case=case)
        shares, chosen = route()
        flops, num_bytes = cost_of_experts(spec, chosen)
        facts = {"flops": flops, "num_bytes": num_bytes, "case": case}
        line_up = partial(routing.line_up, chosen, spec.num_experts, 64)
        report.time("line_up", [line_up] * 8, case=case)
        default = moe.choose_tuning(chosen.numel(), spec, Target.of(Here()))
        for tuning in dict.fromkeys([default, *moe_tunings(tokens)]):
            for layer in layers:
                layer._tuning = tuning
            calls = [partial(layer, x, shares, chosen) for layer in layers]
            shape = (tuning.block_m, tuning.gate_up, tuning.down)
            report.time("experts", calls, tuning=shape, is_default=tuning == default, **facts)
        loops = [experts_by_loop(layer, x, shares, chosen) for layer in layers]
        report.time("loop over experts", loops, **facts)
        grouped = [grouped_products(layer, x, chosen) for layer in layers]
        report.time("torch grouped_mm, products only", grouped, **facts)
        if report.shard is None:
            ours, right = layers[0](x, shares, chosen).double(), loops[0]().double()
            report.add(
                "experts error", case=case, error=float((ours - right).norm() / right.norm())
            )
    report.best("experts")


def make_experts(spec: ExpertsSpec) -> moe.FusedExperts:
    built = moe.FusedExperts(spec, Here())
    for matrices in (built._gate_up, built._down):
        for expert in matrices.parts["weight"]:
            expert.copy_(randn(*expert.shape) * expert.shape[1] ** -0.5)
    return built


def cost_of_experts(spec: ExpertsSpec, chosen) -> tuple[int, int]:
    """Return operations, and the bytes of the experts chosen and of activations in and out."""
    matrices = 3 * spec.hidden_size * spec.intermediate_size
    num_used = len(torch.unique(chosen))
    activations = 2 * len(chosen) * spec.hidden_size
    return 2 * chosen.numel() * matrices, 2 * (num_used * matrices + activations)


def moe_tunings(tokens: int) -> list[moe.MoETuning]:
    rows = (16,) if tokens < 64 else (16, 32, 64) if tokens <= 256 else (64, 128)
    shapes = {
        16: [((32, 128, 4, 4), (64, 128, 4, 4)), ((16, 256, 4, 3), (32, 256, 4, 3)),
             ((64, 64, 4, 4), (64, 64, 4, 5)), ((32, 128, 2, 4), (32, 128, 4, 4))],
        32: [((64, 64, 4, 4), (128, 64, 4, 4)), ((32, 128, 4, 3), (64, 128, 4, 3))],
        64: [((64, 64, 4, 4), (128, 64, 4, 4)), ((128, 64, 8, 3), (256, 64, 8, 3)),
             ((64, 128, 4, 2), (128, 128, 4, 2)), ((32, 64, 4, 5), (64, 64, 4, 5))],
        128: [((64, 64, 8, 3), (128, 64, 8, 3)), ((64, 64, 8, 4), (128, 64, 8, 4)),
              ((128, 64, 8, 3), (256, 64, 8, 3)), ((64, 64, 4, 3), (128, 64, 4, 3))],
    }  # fmt: skip
    return [moe.MoETuning(m, gate_up, down) for m in rows for gate_up, down in shapes[m]]


def experts_by_loop(layer: moe.FusedExperts, x, shares, chosen):
    """Return what does it expert by expert, its rows known beforehand as no server knows them."""
    by_expert = [(e, *torch.where(chosen == e)) for e in torch.unique(chosen).tolist()]
    gate_up, down = layer._gate_up.parts["weight"], layer._down.parts["weight"]

    def run():
        out = torch.zeros_like(x, dtype=torch.float32)
        for expert, tokens, places in by_expert:
            gate, up = linear(x[tokens], gate_up[expert]).chunk(2, dim=-1)
            y = linear(torch.nn.functional.silu(gate) * up, down[expert])
            out.index_add_(0, tokens, y * shares[tokens, places, None])
        return out.to(x.dtype)

    return run


def grouped_products(layer: moe.FusedExperts, x, chosen):
    """Return PyTorch's grouped products on rows that are lined up already."""
    counts = torch.bincount(chosen.flatten().long(), minlength=layer.spec.num_experts)
    ends = counts.cumsum(0).int()
    rows = x[chosen.flatten().long().argsort(stable=True) // chosen.shape[1]]
    between = randn(len(rows), layer.spec.intermediate_size)
    gate_up, down = (m.parts["weight"].transpose(1, 2) for m in (layer._gate_up, layer._down))

    def run():
        torch._grouped_mm(rows, gate_up, offs=ends)
        return torch._grouped_mm(between, down, offs=ends)

    return run


# --- small ops -----------------------------------------------------------------------------------


def part_small(report: Report) -> None:
    target = Target.of(Here())
    norms, acts, rotations = Norms(target), Activations(target), Rotations(target)
    argmax = Argmax(target)
    for tokens in (1, 16, 256, 8192):
        for hidden, ffn, heads in ((1024, 3072, 16), (4096, 12288, 32)):
            case = f"T={tokens} D={hidden}"
            x, residual, weight = randn(tokens, hidden), randn(tokens, hidden), randn(hidden)
            nb = tokens * hidden * 2
            many = [partial(norms.rms_norm, x, weight, eps=1e-6)] * 8
            report.time("rms_norm", many, num_bytes=2 * nb, case=case)
            many = [partial(norms.add_rms_norm, x, residual, weight, eps=1e-6)] * 8
            report.time("add_rms_norm", many, num_bytes=4 * nb, case=case)
            gate_up = randn(tokens, 2 * ffn)
            many = [partial(acts.silu_and_mul, gate_up)] * 8
            report.time("silu_and_mul", many, num_bytes=tokens * ffn * 6, case=case)
            batch, num_pages = make_batch([tokens], [tokens], 64)
            spec = make_spec(heads, 8, batch, 64)
            provider = PagedAttention(spec, Here())
            kv = randn(*provider.kv_shape(num_pages))
            qkv = randn(tokens, (heads + 16) * 128)
            table, norm = randn(32768, 128, dtype=torch.float32), randn(128)
            many = [
                partial(
                    rotations.rotate_and_write,
                    qkv, table, norm, norm, kv, batch, provider=provider, num_heads=heads,
                    num_kv_heads=8, head_dim=128, eps=1e-6, is_interleaved=False,
                )
            ] * 8  # fmt: skip
            report.time("rotate_and_write", many, num_bytes=2 * qkv.numel() * 2, case=case)
    for rows in (1, 16, 256):
        logits = randn(rows, 151936, dtype=torch.float32)
        many = [partial(argmax.argmax_tokens, logits)] * 4
        report.time("argmax", many, num_bytes=rows * 151936 * 4, case=f"S={rows}")
        many = [partial(torch.argmax, logits, dim=-1)] * 4
        report.time("torch argmax", many, num_bytes=rows * 151936 * 4, case=f"S={rows}")


# --- sampling ------------------------------------------------------------------------------------

VOCABULARY = 151936
FILTERS = {
    "off": (1.0, -1, 1.0, 0.0),
    "greedy": (0.0, -1, 1.0, 0.0),
    "top-p 0.9, top-k 50": (1.0, 50, 0.9, 0.0),
    "top-p 0.9": (1.0, -1, 0.9, 0.0),
    "min-p 0.05": (1.0, -1, 1.0, 0.05),
}


def part_sampling(report: Report) -> None:
    """Time the sampling ops beside their references, on logits as hot as the head leaves them."""
    target = Target.of(Here())
    for rows in (1, 32, 256):
        time_draws(report, Draws(target), rows)
        time_penalties(report, Shaping(target), rows)
        logits = randn(rows, VOCABULARY, dtype=torch.float32)
        ids = torch.zeros((rows, 1024), dtype=torch.int64, device=DEVICE)
        biases = torch.zeros((rows, 1024), device=DEVICE)
        ids[:, :8], biases[:, :8] = torch.arange(8, device=DEVICE) * 1000, 1.0
        ways = {"triton": Shaping(target).add_bias, "reference": add_bias.reference}
        for way, run in ways.items():
            many = [partial(run, logits, ids, biases)] * 4
            report.time("add_bias", many, case=f"S={rows}", way=way)
        ways = {"triton": Logprobs(target).token_logprobs, "reference": token_logprobs.reference}
        for (way, run), k in itertools.product(ways.items(), (0, 5, 20, 128)):
            many = [partial(run, logits, ids[:, 0], ids[:, :1], k=k)] * 2
            report.time("token_logprobs", many, case=f"S={rows} k={k}", way=way)


def time_draws(report: Report, draws: Draws, rows: int) -> None:
    """Time draws from peaked rows, and from flat ones, whose filters leave many ids open."""
    indexes = torch.arange(rows, device=DEVICE)
    ways = {"triton": draws.draw_tokens, "reference": draw_tokens.reference}
    for scale, (filters, (temperature, top_k, top_p, min_p)) in itertools.product(
        (4.0, 0.5), FILTERS.items()
    ):
        logits = randn(rows, VOCABULARY, dtype=torch.float32) * scale
        settings = (
            torch.full((rows,), temperature, device=DEVICE),
            torch.full((rows,), top_k, dtype=torch.int32, device=DEVICE),
            torch.full((rows,), top_p, device=DEVICE),
            torch.full((rows,), min_p, device=DEVICE),
        )
        args = (logits, *settings, indexes * 7919, indexes)
        facts = {"case": f"S={rows} deviation {scale:g}, {filters}"}
        if report.shard is None:
            ours, theirs = (run(*args) for run in ways.values())
            report.add("draw_tokens", equal_ids=float((ours == theirs).float().mean()), **facts)
        for way, run in ways.items():
            num_bytes = rows * VOCABULARY * 4
            many = [partial(run, *args)] * 2
            report.time("draw_tokens", many, num_bytes=num_bytes, way=way, **facts)


def time_penalties(report: Report, shaping: Shaping, rows: int) -> None:
    """Time penalties of every row, of the first only, and of none."""
    logits = randn(rows, VOCABULARY, dtype=torch.float32)
    counts = (torch.rand(rows, VOCABULARY, device=DEVICE) < 0.01).int()
    in_prompt = torch.rand(rows, VOCABULARY, device=DEVICE) < 0.02
    every, first = torch.ones(rows, device=DEVICE), torch.zeros(rows, device=DEVICE)
    first[0] = 1.0
    ways = {"triton": shaping.apply_penalties, "reference": apply_penalties.reference}
    for (way, run), (who, is_on) in itertools.product(
        ways.items(), {"every row": every, "first row": first, "no row": first * 0}.items()
    ):
        many = [
            partial(run, logits, counts, in_prompt, 1 + is_on * 0.1, is_on * 0.2, is_on * 0.1)
        ] * 4
        report.time("apply_penalties", many, case=f"S={rows}, {who}", way=way)


# --- a whole decode step -------------------------------------------------------------------------

MODELS = {
    "0.6B": {"layers": 28, "hidden": 1024, "ffn": 3072, "heads": 16},
    "8B": {"layers": 36, "hidden": 4096, "ffn": 12288, "heads": 32},
}


def part_step(report: Report) -> None:
    """Time a decode step as the graph room strings it together."""
    for name, rows, has_pdl in itertools.product(MODELS, (1, 4, 16, 256), (True, False)):
        if rows > 1 and not has_pdl:
            continue
        step, weight_bytes = make_decode_step(MODELS[name], [512] * rows, has_pdl)
        facts = {"case": f"{name} R={rows}", "pdl": has_pdl}
        report.time("step", [step], num_bytes=weight_bytes, **facts)
        if rows == 1 and has_pdl and report.shard is None:
            profile(report, step, name)
        del step
        torch.cuda.empty_cache()


def make_decode_step(model, lengths, has_pdl):
    from dataclasses import replace

    from headstock.ops.linear import LinearSpec

    target = Target.of(Here())
    if not has_pdl:
        target = replace(target, has_pdl=False)
    hidden, ffn, heads = model["hidden"], model["ffn"], model["heads"]
    rows = len(lengths)
    batch, num_pages = make_batch([1] * rows, lengths, 64)
    norms, acts, rotations = Norms(target), Activations(target), Rotations(target)
    argmax = Argmax(target)
    provider = PagedAttention(make_spec(heads, 8, batch, 64), Here())
    provider._target = target
    table, head_norm = randn(32768, 128, dtype=torch.float32), randn(128)

    def matrix(size_in, size_out):
        built = build_dense(
            LinearSpec(in_features=size_in, out_features=size_out, dtype=BF16), Here()
        )
        built._target = target
        for begin in range(0, size_out, 16384):
            end = min(begin + 16384, size_out)
            built.load({"weight": randn(end - begin, size_in) * size_in**-0.5}, begin)
        return built

    layers = [
        {
            "qkv": matrix(hidden, (heads + 16) * 128),
            "o": matrix(heads * 128, hidden),
            "gate_up": matrix(hidden, 2 * ffn),
            "down": matrix(ffn, hidden),
            "norms": (randn(hidden), randn(hidden)),
            "kv": randn(*provider.kv_shape(num_pages)),
        }
        for _ in range(model["layers"])
    ]
    head = matrix(hidden, 151936)
    ids = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    weight_bytes = sum(
        layer[n].num_bytes for layer in layers for n in ("qkv", "o", "gate_up", "down")
    )
    weight_bytes += head.num_bytes
    provider.plan(batch)

    def step():
        x = head.rows(ids, 0)
        residual = x.clone()
        normed = norms.rms_norm(x, layers[0]["norms"][0], eps=1e-6)
        for index, layer in enumerate(layers):
            if index:
                normed, residual = norms.add_rms_norm(x, residual, layer["norms"][0], eps=1e-6)
            q = rotations.rotate_and_write(
                layer["qkv"](normed), table, head_norm, head_norm, layer["kv"], batch,
                provider=provider, num_heads=heads, num_kv_heads=8, head_dim=128, eps=1e-6,
                is_interleaved=False,
            )  # fmt: skip
            x = layer["o"](provider.run(q, layer["kv"], batch).flatten(1))
            normed, residual = norms.add_rms_norm(x, residual, layer["norms"][1], eps=1e-6)
            x = layer["down"](acts.silu_and_mul(layer["gate_up"](normed)))
        last, _ = norms.add_rms_norm(x, residual, layers[0]["norms"][0], eps=1e-6)
        ids.copy_(argmax.argmax_tokens(head(last).float()) % 1000)

    return step, weight_bytes


def profile(report: Report, step, name: str) -> None:
    """Report the time of each kernel of one eager step, summed by name."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    with profiler(activities=[ProfilerActivity.CUDA]) as trace:
        graph.replay()
        torch.cuda.synchronize()
    for event in sorted(trace.key_averages(), key=lambda e: -e.device_time_total)[:14]:
        report.add(
            "kernel",
            case=f"{name} step",
            kernel=event.key[:60],
            calls=event.count,
            each_us=round(event.device_time_total / max(event.count, 1), 2),
        )


def part_check(report: Report) -> None:
    """Check one large result of each kernel in bf16 against float64; not a replacement of tests."""
    x, weight = randn(64, 4096), randn(4096)
    ours = Norms(Target.of(Here())).rms_norm(x, weight, eps=1e-6).double()
    right = rms_norm.reference(x.double(), weight.double(), eps=1e-6)
    report.add("rms_norm error", error=float((ours - right).norm() / right.norm()))


PARTS = {
    "limits": part_limits,
    "gemv": part_gemv,
    "gemm": part_gemm,
    "fp8": part_fp8,
    "ints": part_ints,
    "int_tilings": part_int_tilings,
    "decode": part_decode,
    "prefill": part_prefill,
    "flash": part_flash,
    "tree": part_tree,
    "moe": part_moe,
    "small": part_small,
    "sampling": part_sampling,
    "step": part_step,
    "check": part_check,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--compile", help="I/N: launch only, that share of the kernels")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("No GPU: nothing to time.")
    shard = tuple(map(int, options.compile.split("/"))) if options.compile else None
    report = Report(shard)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, triton {triton.__version__}", flush=True)
    with torch.inference_mode():
        PARTS[options.part](report)
    if options.out and shard is None:
        options.out.write_text(json.dumps(report.rows, indent=1))


if __name__ == "__main__":
    main()
