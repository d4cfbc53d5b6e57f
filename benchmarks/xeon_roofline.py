"""Draws where the xeon backend's kernels stand between this machine's limits.

    python benchmarks/xeon_kernels.py --threads 2 --json kernels.json
    python benchmarks/xeon_roofline.py kernels.json docs/images/xeon-roofline.png

Each point is one kernel at one size: operations a byte that it must move at least, against
operations a second. The limits are measured when it is drawn: bytes a second from memory, and
operations a second in registers of the three multiplications that the AVX2 kernels use. Attention
may lie above the memory's line: its keys are still in the cache from the run before. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from machine_limits import measure_limits

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

CEILINGS = {
    "fma_f32_ops_s": "float32 FMA",
    "madd_16bit_ops_s": "16-bit multiply-add (int8 weights)",
    "madd_8bit_ops_s": "8-bit multiply-add (int4 weights)",
}
STYLES = {
    "linear float32": ("o", "tab:blue"),
    "linear bfloat16": ("o", "tab:cyan"),
    "linear int8": ("o", "tab:orange"),
    "linear int4": ("o", "tab:red"),
    "attention float32": ("^", "tab:green"),
    "attention float16": ("^", "tab:olive"),
    "torch float32": ("x", "tab:gray"),
}
INTENSITIES = (0.4, 4000.0)
"""Operations a byte that are shown."""


def draw_limits(axes: Axes, limits: dict[str, float]) -> None:
    """Draw what memory and what each multiplication allows."""
    read = limits["read_bytes_s"] / 1e9
    top = max(limits[name] for name in CEILINGS) / 1e9
    low, high = INTENSITIES[0], top / read
    axes.plot([low, high], [low * read, top], color="black")
    axes.annotate(f"memory: {read:.1f} GB/s", (INTENSITIES[0] * 1.1, read), ha="left", fontsize=8)
    for name, label in CEILINGS.items():
        value = limits[name] / 1e9
        axes.plot([value / read, INTENSITIES[1]], [value, value], color="black", linestyle="--")
        axes.annotate(
            f"{label}: {value:.0f}", (INTENSITIES[1] * 0.95, value * 1.05), ha="right", fontsize=8
        )


def draw_points(axes: Axes, points: list[dict[str, Any]]) -> None:
    """Draw each kernel's sizes as one series."""
    for kernel in dict.fromkeys(point["kernel"] for point in points):
        of_it = [point for point in points if point["kernel"] == kernel]
        marker, colour = STYLES.get(kernel, ("s", "tab:purple"))
        xs = [point["operations"] / point["bytes"] for point in of_it]
        ys = [point["operations"] / point["seconds"] / 1e9 for point in of_it]
        axes.plot(xs, ys, marker=marker, color=colour, linewidth=0.6, label=kernel)
        for x, y, point in zip(xs, ys, of_it, strict=True):
            axes.annotate(
                point["label"], (x, y), textcoords="offset points", xytext=(4, -9), fontsize=6
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kernels", type=Path, help="JSON of xeon_kernels.py")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write points and limits here")
    options = parser.parse_args()
    found = json.loads(options.kernels.read_text())
    points, limits = found["points"], found["limits"]
    if not set(CEILINGS) <= set(limits):  # Else it is a file of --json, drawn again.
        limits = measure_limits(options.threads)
    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    axes.set(xscale="log", yscale="log", xlim=INTENSITIES, xlabel="operations a byte",
             ylabel="10⁹ operations a second",
             title=f"Kernels of the xeon backend, {options.threads} threads")  # fmt: skip
    draw_limits(axes, limits)
    draw_points(axes, points)
    axes.grid(which="both", alpha=0.2)
    axes.legend(loc="lower right", fontsize=8)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture, dpi=110)
    if options.json:
        record = {"limits": limits, "points": points}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {options.picture}: {limits}")


if __name__ == "__main__":
    main()
