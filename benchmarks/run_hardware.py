"""Test and time the CUDA backend on the card: `python benchmarks/run_hardware.py --out DIR`.

Each part runs in a process of its own under its own time limit; a part that fails or hangs is
reported and the others go on. Kernels are compiled by several processes before they are timed.
Writes DIR/summary.json, and each part's log and figures beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ["core", "models", *(f"backends/{n}" for n in ("cuda", "triton", "rocm", "xeon"))]
KERNEL_PARTS = ("limits", "small", "step", "decode", "prefill", "tree", "gemv")
COMPILERS = 8


@dataclass(slots=True)
class Part:
    """One process.

    Attributes:
        name: Of its log.
        command: After the Python interpreter.
        limit_s: After which it is killed.
        compiles: Commands that fill the compiler's cache first, all at once.
    """

    name: str
    command: list[str]
    limit_s: float
    compiles: list[list[str]] = field(default_factory=list)


def parts(out: Path) -> list[Part]:
    """Return every part, the most telling first."""
    pytest = ["-m", "pytest", "-q", "-x", "--maxfail=8", "-p", "no:cacheprovider"]
    kernels, devices = "tests/kernels/triton_kernels", "tests/hardware/cuda"
    found = [
        Part("info", ["-c", INFO], 60),
        Part("test-device", [*pytest, devices], 150),
        Part("test-ops", [*pytest, f"{kernels}/test_triton_ops.py"], 240),
        Part(
            "test-tree",
            [*pytest, f"{kernels}/test_triton_tree.py", f"{kernels}/test_triton_steps.py"],
            150,
        ),
    ]
    for name in KERNEL_PARTS:
        script = ["benchmarks/cuda_kernels.py", name]
        compiles = [[*script, "--compile", f"{i}/{COMPILERS}"] for i in range(COMPILERS)]
        if name in ("limits", "step"):
            compiles = []
        found.append(
            Part(f"time-{name}", [*script, "--out", str(out / f"{name}.json")], 180, compiles)
        )
    return found


INFO = """
import torch, triton, subprocess
print(torch.__version__, triton.__version__, torch.cuda.get_device_name())
print(torch.cuda.get_device_properties(0))
print(subprocess.run(["nvidia-smi"], capture_output=True, text=True).stdout)
"""


def environment() -> dict[str, str]:
    """Return the environment of the parts: this checkout on the path, not installed."""
    path = os.pathsep.join(str(ROOT / package) for package in PACKAGES)
    known = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": path + (os.pathsep + known if known else "")}


def run(part: Part, out: Path) -> dict:
    """Run one part; return its outcome."""
    began = time.monotonic()
    with open(out / f"{part.name}.compile.log", "w") as log:
        compilers = [start(command, log) for command in part.compiles]
        for process in compilers:
            finish(process, part.limit_s - (time.monotonic() - began))
    compiled = time.monotonic()
    with open(out / f"{part.name}.log", "w") as log:
        process = start(part.command, log)
        code = finish(process, part.limit_s)
    ended = time.monotonic()
    return {
        "part": part.name,
        "code": "timeout" if code is None else code,
        "compile_s": round(compiled - began, 1),
        "run_s": round(ended - compiled, 1),
    }


def start(command: list[str], log) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=environment(), stdout=log, stderr=log
    )


def finish(process: subprocess.Popen, limit_s: float) -> int | None:
    """Wait for ``process``; kill it at the limit and return None."""
    try:
        return process.wait(max(limit_s, 1))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="parts, by comma; a prefix such as time- is enough")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began, results = time.monotonic(), []
    for part in parts(options.out):
        if options.only and not part.name.startswith(tuple(options.only.split(","))):
            continue
        left = options.budget - (time.monotonic() - began)
        if left < 10:
            results.append({"part": part.name, "code": "skipped: out of time"})
            continue
        part.limit_s = min(part.limit_s, left)
        results.append(run(part, options.out))
        print(f"\n=== {json.dumps(results[-1])}", flush=True)
        lines = (options.out / f"{part.name}.log").read_text().splitlines()
        telling = [line for line in lines if line.startswith("BEST")]
        shown = telling if telling and results[-1]["code"] == 0 else lines[-12:]
        print("\n".join(line[:400] for line in shown), flush=True)
        (options.out / "summary.json").write_text(json.dumps(results, indent=1))
    print("\nSUMMARY " + json.dumps(results))


if __name__ == "__main__":
    main()
