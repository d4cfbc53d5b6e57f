"""Products by every instruction set of this machine, in turn: `python benchmarks/xeon_sets.py`.

    python benchmarks/xeon_sets.py [--threads N] [--seconds S] [--rounds N] [--json FILE]

SmolLM2-135M's gate-up matrix in each layout, by each kernel that runs here. Kernels take turns
within a round, and a figure is the best of all rounds: other work on the machine only takes time
away. Microseconds a product; weights come from memory, spread over more than the caches hold, up to
16 rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from xeon_kernels import best, make_weights

from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP
from headstock_xeon.device import XeonDevice
from headstock_xeon.kernels.linear import NativeLinear
from headstock_xeon.native import FEATURES, load

SIZE_OUT, SIZE_IN = 3072, 576
ROWS = (1, 4, 16, 64, 256)
LAYOUTS = (
    ("float32", DENSE, torch.float32),
    ("bfloat16", DENSE, torch.bfloat16),
    ("int8", INT8_GROUP, torch.float32),
    ("int4", INT4_GROUP, torch.float32),
)
Products = dict[str, list[NativeLinear]]


def products(devices: dict[str, XeonDevice], layout: str, dtype: torch.dtype) -> Products:
    """Return weights by the kernel that computes them, each kernel once."""
    found: Products = {}
    for device in devices.values():
        weights = make_weights(device, layout, SIZE_OUT, SIZE_IN, dtype)
        found.setdefault(weights[0].kernel, weights)
    return found


def measure(found: Products, seconds: float, rounds: int) -> dict[str, dict[int, float]]:
    """Return the microseconds of a product, by kernel and rows."""
    times: dict[str, dict[int, float]] = {kernel: {} for kernel in found}
    for rows in ROWS * rounds:
        x_MI = torch.randn(rows, SIZE_IN)
        for kernel, weights in found.items():
            used = weights if rows <= 16 else weights[:4]

            def run(used: list[NativeLinear] = used, x_MI: torch.Tensor = x_MI) -> None:
                for weight in used:
                    weight(x_MI)

            took = best(run, seconds) / len(used) * 1e6
            times[kernel][rows] = min(took, times[kernel].get(rows, took))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    library = load()
    names = [name for name, bit in FEATURES.items() if library.features & bit]
    devices: dict[str, XeonDevice] = {}
    for name in names:
        features = FEATURES["avx2"] | FEATURES[name]  # alone, or a better one would be chosen
        devices[name] = XeonDevice(name, library, num_threads=options.threads, features=features)
    report: dict[str, dict[str, dict[int, float]]] = {}
    print(f"{'layout':10} {'kernel':22}" + "".join(f"{rows:>9}" for rows in ROWS))
    for label, layout, dtype in LAYOUTS:
        report[label] = measure(products(devices, layout, dtype), options.seconds, options.rounds)
        for kernel, times in report[label].items():
            print(f"{label:10} {kernel:22}" + "".join(f"{times[rows]:9.1f}" for rows in ROWS))
    if options.json:
        options.json.write_text(json.dumps({"sets": names, "us": report}, indent=1))


if __name__ == "__main__":
    main()
