"""Native kernels of the xeon backend against this machine's limits, and against PyTorch.

    python benchmarks/xeon_kernels.py [--threads N] [--seconds S] [--json FILE] [--svg FILE]

Every figure is the best of many runs: what the kernel does when nothing else wants the cores. The
limits (bytes a second from memory, float32 operations a second) are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch

from headstock.ops.canonical import quantize_int4, quantize_int8
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP, LinearSpec
from headstock.ops.moe import ExpertsSpec
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.attention import NativeAttention
from headstock_xeon.kernels.experts import NativeExperts
from headstock_xeon.kernels.linear import NativeLinear
from headstock_xeon.native import load

COLD_BYTES = 256 << 20
"""Weights of a decode step come from memory: they are spread over more than the caches hold."""


@dataclass(frozen=True)
class Point:
    """One kernel at one size: its work, and what it reached."""

    kernel: str
    label: str
    operations: float
    bytes: float
    seconds: float

    @property
    def gops(self) -> float:
        return self.operations / self.seconds / 1e9

    @property
    def gbytes(self) -> float:
        return self.bytes / self.seconds / 1e9


def best(run: Callable[[], object], seconds: float) -> float:
    """Return the shortest time of one run, tried for ``seconds``."""
    run()
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def make_weights(
    device: XeonDevice, layout: str, size_out: int, size_in: int, dtype: torch.dtype
) -> list[NativeLinear]:
    """Return as many equal weights as make ``COLD_BYTES``, at most 64."""
    spec = LinearSpec(
        in_features=size_in,
        out_features=size_out,
        dtype=torch.float32,
        layout=layout,
        group_size=0 if layout == DENSE else 32,
    )
    weight_OI = torch.randn(size_out, size_in) * size_in**-0.5
    part = {"weight": weight_OI.to(dtype)}
    if layout == INT8_GROUP:
        part = quantize_int8(weight_OI, 32)
    if layout == INT4_GROUP:
        part = quantize_int4(weight_OI, 32)
    made: list[NativeLinear] = []
    while not made or (len(made) < 64 and sum(w.num_bytes for w in made) < COLD_BYTES):
        made.append(NativeLinear(spec, device))
        made[-1].load(part, 0)
    return made


def linear_points(device: XeonDevice, seconds: float) -> list[Point]:
    """Measure products of SmolLM2-135M's gate-up matrix, at decode and prefill sizes."""
    size_out, size_in = 3072, 576
    points: list[Point] = []
    kinds = (
        ("float32", DENSE, torch.float32),
        ("bfloat16", DENSE, torch.bfloat16),
        ("int8", INT8_GROUP, torch.float32),
        ("int4", INT4_GROUP, torch.float32),
    )
    for name, layout, dtype in kinds:
        weights = make_weights(device, layout, size_out, size_in, dtype)
        for rows in (1, 4, 16, 128, 512):
            x_MI = torch.randn(rows, size_in)
            used = weights if rows <= 16 else weights[:4]

            def run(used: list[NativeLinear] = used, x_MI: torch.Tensor = x_MI) -> None:
                for weight in used:
                    weight(x_MI)

            elapsed = best(run, seconds) / len(used)
            operations = 2.0 * rows * size_out * size_in
            num_bytes = weights[0].num_bytes + 4.0 * rows * (size_in + size_out)
            points.append(Point(f"linear {name}", f"M={rows}", operations, num_bytes, elapsed))
    return points


def expert_points(device: XeonDevice, seconds: float) -> list[Point]:
    """Measure 32 of the 128 experts of a layer of Qwen3-30B-A3B, each token with 8 of its own."""
    spec = ExpertsSpec(
        hidden_size=2048,
        intermediate_size=768,
        num_experts=32,
        experts_per_token=8,
        dtype=torch.float32,
    )
    points: list[Point] = []
    for name, layout in (("int8", INT8_GROUP), ("int4", INT4_GROUP)):
        provider = make_experts(device, replace(spec, layout=layout, group_size=32))
        for tokens in (1, 4, 16, 128):
            x_TD, weights_Tk = torch.randn(tokens, 2048), torch.rand(tokens, 8)
            order_TE = torch.rand(4, tokens, 32).argsort(dim=-1).int()
            steps = [order_TE[turn, :, 8 * turn : 8 * turn + 8] for turn in range(4)]

            def run(
                provider: NativeExperts = provider,
                given: tuple[torch.Tensor, torch.Tensor] = (x_TD, weights_Tk),
                steps: list[torch.Tensor] = steps,
            ) -> None:
                for chosen_Tk in steps:
                    provider(*given, chosen_Tk)

            elapsed = best(run, seconds) / len(steps)
            num_used = sum(len(chosen_Tk.unique()) for chosen_Tk in steps) / len(steps)
            num_bytes = provider.num_bytes * num_used / 32 + 4.0 * tokens * 2 * 2048
            operations = 2.0 * tokens * 8 * 3 * 2048 * 768
            points.append(Point(f"experts {name}", f"T={tokens}", operations, num_bytes, elapsed))
    return points


def make_experts(device: XeonDevice, spec: ExpertsSpec) -> NativeExperts:
    """Return packed experts, all of the same values."""
    provider = NativeExperts(spec, device)
    quantize = quantize_int8 if spec.layout == INT8_GROUP else quantize_int4
    inwards = quantize(torch.randn(768, 2048) * 2048**-0.5, spec.group_size)
    outwards = quantize(torch.randn(2048, 768) * 768**-0.5, spec.group_size)
    for expert in range(spec.num_experts):
        provider.load(inwards, expert, "gate", 0)
        provider.load(inwards, expert, "up", 0)
        provider.load(outwards, expert, "down", 0)
    return provider


def attend(
    provider: NativeAttention, q_THD: torch.Tensor, kv: torch.Tensor, step: Step
) -> torch.Tensor:
    provider.plan(step.batch)
    return provider.run(q_THD, kv, step.batch)


def attention_points(device: XeonDevice, seconds: float) -> list[Point]:
    """Measure decode of 16 rows and prefill of one, 9 heads over 3 of size 64."""
    points: list[Point] = []
    for kv_dtype in (torch.float32, torch.float16):
        spec = replace(
            plain_spec(torch.float32, 16),
            num_heads=9,
            num_kv_heads=3,
            kv_dtype=kv_dtype,
            max_length=4096,
            max_tokens=4096,
        )
        provider = NativeAttention(spec, device)
        for label, rows in (
            ("decode 16 x 512", [(1, 512)] * 16),
            ("decode 1 x 2048", [(1, 2048)]),
            ("prefill 512", [(512, 512)]),
            ("prefill 2048", [(2048, 2048)]),
        ):
            step = make_step(rows, 16, device.torch_device)
            kv = device.empty(provider.kv_shape(step.num_pages), kv_dtype).normal_()
            q_THD = torch.randn(step.batch.num_tokens, 9, 64)

            elapsed = best(partial(attend, provider, q_THD, kv, step), seconds)
            pairs = sum(q * kv - q * (q - 1) / 2 for q, kv in rows)
            num_bytes = sum(kv for _, kv in rows) * 2 * 3 * 64 * kv_dtype.itemsize
            name = str(kv_dtype).removeprefix("torch.")
            points.append(Point(f"attention {name}", label, 4 * 64 * 9 * pairs, num_bytes, elapsed))
    return points


def limits(device: XeonDevice, seconds: float) -> dict[str, float]:
    """Measure bytes a second from memory, and float32 operations a second."""
    source = device.empty((COLD_BYTES // 4,), torch.float32).fill_(1.0)
    read = best(lambda: source.sum(), seconds)
    size = 1024
    a, b = torch.randn(size, size), torch.randn(size, size)
    product = best(lambda: a @ b, seconds)
    return {
        "torch sum, GB/s": COLD_BYTES / read / 1e9,
        "torch float32 GEMM 1024, GFLOP/s": 2 * size**3 / product / 1e9,
    }


def torch_points(seconds: float) -> list[Point]:
    """Measure PyTorch's float32 products at the same sizes."""
    points: list[Point] = []
    weights = [torch.randn(3072, 576) for _ in range(COLD_BYTES // (3072 * 576 * 4))]
    for rows in (1, 16, 128, 512):
        x_MI = torch.randn(rows, 576)
        used = weights if rows <= 16 else weights[:4]

        def run(used: list[torch.Tensor] = used, x_MI: torch.Tensor = x_MI) -> None:
            for weight in used:
                torch.nn.functional.linear(x_MI, weight)

        elapsed = best(run, seconds) / len(used)
        num_bytes = weights[0].nbytes + 4.0 * rows * (576 + 3072)
        points.append(
            Point("torch float32", f"M={rows}", 2.0 * rows * 576 * 3072, num_bytes, elapsed)
        )
    return points


WIDTH, HEIGHT, MARGIN = 760, 480, 60
COLOURS = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#566573", "#117a65")


def roofline(points: list[Point], found: dict[str, float]) -> str:
    """Return a plot, as SVG, of operations a second over operations a byte, under both limits."""
    gbytes, gflops = found.values()
    top = 2 ** math.ceil(math.log2(max(gflops, *(p.gops for p in points))))
    left, right, bottom = -3, 10, math.log2(top) - 9

    def place(intensity: float, gops: float) -> tuple[float, float]:
        x = (math.log2(intensity) - left) / (right - left) * (WIDTH - 2 * MARGIN) + MARGIN
        y = (math.log2(gops) - bottom) / (math.log2(top) - bottom)
        return x, HEIGHT - MARGIN - y * (HEIGHT - 2 * MARGIN)

    def text(x: float, y: float, content: str, more: str = "") -> str:
        return f'<text x="{x:.0f}" y="{y:.0f}" font-size="11" {more}>{content}</text>'

    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for power in range(left, right + 1):
        x, y = place(2.0**power, 2.0**bottom)
        drawn.append(text(x, y + 16, f"{2.0**power:g}", 'text-anchor="middle"'))
    for power in range(int(bottom), int(math.log2(top)) + 1):
        x, y = place(2.0**left, 2.0**power)
        drawn.append(text(x - 6, y + 4, f"{2.0**power:g}", 'text-anchor="end"'))
        drawn.append(f'<path d="M{x} {y}H{WIDTH - MARGIN}" stroke="#ddd"/>')
    knee = gflops / gbytes
    path = " L".join("{:.1f} {:.1f}".format(*place(*at)) for at in (
        (2.0**left, gbytes * 2.0**left), (knee, gflops), (2.0**right, gflops)))  # fmt: skip
    drawn.append(f'<path d="M{path}" stroke="black" fill="none" stroke-dasharray="5 3"/>')
    names = list(dict.fromkeys(p.kernel for p in points))
    for p in points:
        intensity = min(max(p.operations / p.bytes, 2.0**left), 2.0**right)
        x, y = place(intensity, p.gops)
        colour = COLOURS[names.index(p.kernel) % len(COLOURS)]
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        drawn.append(text(x + 6, y + 4, p.label.replace("M=", ""), f'fill="{colour}"'))
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        drawn.append(text(MARGIN + 10, MARGIN + 15 * i, name, f'fill="{colour}"'))
    drawn.append(text(WIDTH / 2, HEIGHT - 16, "operations a byte", 'text-anchor="middle"'))
    label = f"GOP/s; dashed: {gbytes:.0f} GB/s from memory, {gflops:.0f} GFLOP/s in float32"
    drawn.append(text(MARGIN, MARGIN - 24, label))
    return "\n".join([*drawn, "</svg>"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each figure")
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--svg", help="write a roofline plot here")
    parser.add_argument("--only", default="", help="kernels whose name has this")
    options = parser.parse_args()
    device = XeonDevice("this machine", load(), num_threads=options.threads)
    found = limits(device, options.seconds)
    print(f"{device.name}; " + ", ".join(f"{k} {v:.1f}" for k, v in found.items()))
    points: list[Point] = []
    if options.only in "attention":
        points += attention_points(device, options.seconds)
    if options.only in "linear":
        points += linear_points(device, options.seconds)
    if options.only in "experts":
        points += expert_points(device, options.seconds)
    if options.only in "torch":
        points += torch_points(options.seconds)
    for p in points:
        print(
            f"{p.kernel:18} {p.label:16} {p.seconds * 1e6:10.1f} us {p.gops:8.1f} GOP/s"
            f" {p.gbytes:7.1f} GB/s"
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"limits": found, "points": [asdict(p) for p in points]}, file, indent=1)
    if options.svg:
        with open(options.svg, "w") as file:
            file.write(roofline(points, found))
    device.close()


if __name__ == "__main__":
    main()
