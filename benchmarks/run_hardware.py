"""Check, test and time the CUDA backend on the card: `python benchmarks/run_hardware.py --out DIR`.

Outputs are checked first (`check_outputs.py`); then come the conformance kit, the workloads that
engines are compared on (`offline.py`, `server_streams.py`), and, with `--only time-`, kernels.

Each part runs in a process of its own under its own time limit; a part that fails or hangs is
reported and the others go on. Kernels are compiled by several processes before they are timed.
Writes DIR/summary.json, each part's log and figures beside it, and what the workloads gave to
--results, a file to keep.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ["core", "models", *(f"backends/{n}" for n in ("cuda", "triton", "rocm", "xeon"))]
KERNEL_PARTS = (
    "limits",
    "small",
    "sampling",
    "step",
    "decode",
    "prefill",
    "tree",
    "gemv",
    "gemm",
    "fp8",
    "moe",
)
COMPILERS = 8
STEP_TOKENS = 32768
"""Tokens a step in the workloads: whole batches are handed over at once, and nobody waits for the
next token. Servers' default is 8,192."""


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
    first, *more = checks(out)
    info = Part("info", ["-c", INFO], 60)
    return [info, first, *workload_parts(out), *more, *kernel_parts(out)]


def checks(out: Path) -> list[Part]:
    """Return the parts that say whether it is right."""
    pytest = ["-m", "pytest", "-q", "-rf", "--tb=short", "-W", "ignore", "-p", "no:cacheprovider"]
    kit = ["--pyargs", "headstock.testing.suite", "--headstock-backend=cuda"]
    full_card = "tests/hardware/cuda/test_cuda_memory.py"
    devices = ["tests/hardware", f"--ignore={full_card}"]
    subjects = ("tree", "steps", "sampling", "ints", "moe")
    kernels = [f"tests/kernels/triton_kernels/test_triton_{subject}.py" for subject in subjects]
    return [
        Part(
            "check-outputs",
            ["benchmarks/check_outputs.py", "--out", str(out / "check-outputs.json")],
            120,
        ),
        Part("test-kit-engine", [*pytest, *kit, "-k", "test_7_engine"], 110),
        Part(
            "test-kit", [*pytest, *at_once(), *kit, "-k", "not test_7_engine and not test_8"], 240
        ),
        Part("test-communication", [*pytest, *kit, "-k", "test_8_communication"], 100),
        Part("test-memory", [*pytest, full_card], 80),
        Part("test-device", [*pytest, *at_once(), *devices], 120),
        Part("test-kernels", [*pytest, *at_once(), *kernels], 120),
    ]


def at_once() -> list[str]:
    """Return the options that spread tests over processes, where that plugin is installed."""
    return ["-n", str(COMPILERS)] if importlib.util.find_spec("xdist") else []


def workload_parts(out: Path) -> list[Part]:
    """Return the parts that say how fast the engine and the server are."""
    found: list[Part] = []

    def offline(name: str, model: str, workloads: str, *more: str, limit_s: float) -> None:
        target = ["--out", str(out / f"{name}.jsonl")]
        script = ["benchmarks/offline.py", model, "--workloads", workloads, *target, *more]
        found.append(Part(name, script, limit_s))

    def server(name: str, model: str, limit_s: float) -> None:
        target = ["--out", str(out / f"{name}.jsonl")]
        flag = f"--flag=--chunked-prefill-size={STEP_TOKENS}"
        found.append(Part(name, ["benchmarks/server_streams.py", model, flag, *target], limit_s))

    everything = "decode1,bs256,prefix,long"
    steps = ["--set", f"chunked_prefill_size={STEP_TOKENS}"]
    offline("e2e-0.6b", "qwen3-0.6b", everything, *steps, limit_s=100)
    server("e2e-server-0.6b", "qwen3-0.6b", 80)
    offline("e2e-8b", "qwen3-8b", everything, *steps, limit_s=170)
    fp8 = ["--set", 'quantization="fp8"', *steps]
    offline("e2e-8b-fp8", "qwen3-8b", "bs256,decode1", *fp8, limit_s=100)
    server("e2e-server-8b", "qwen3-8b", 100)
    offline("e2e-0.6b-steps-of-8192", "qwen3-0.6b", "bs256", limit_s=60)
    script = ["benchmarks/cuda_profile.py", "qwen3-0.6b", "decode1", "--out", str(out)]
    found.append(Part("e2e-profile", script, 60))
    return found


def kernel_parts(out: Path) -> list[Part]:
    """Return the parts that time kernels."""
    found: list[Part] = []
    for name in KERNEL_PARTS:
        script = ["benchmarks/cuda_kernels.py", name]
        compiles = [[*script, "--compile", f"{i}/{COMPILERS}"] for i in range(COMPILERS)]
        if name in ("limits", "step", "gemm", "fp8"):
            compiles = []
        target = ["--out", str(out / f"{name}.json")]
        found.append(Part(f"time-{name}", [*script, *target], 180, compiles))
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


def keep(out: Path, outcomes: list[dict], path: Path) -> None:
    """Write what the parts found to one file."""
    figures: list[dict] = []
    for found in sorted(out.glob("e2e-*.jsonl")):
        figures += [{"part": found.stem, **json.loads(x)} for x in found.read_text().splitlines()]
    check = out / "check-outputs.json"
    info = (out / "info.log").read_text() if (out / "info.log").exists() else ""
    path.write_text(
        json.dumps(
            {
                "machine": info.splitlines()[0] if info else "",
                "command": "python benchmarks/run_hardware.py",
                "parts": outcomes,
                "checks": json.loads(check.read_text()) if check.exists() else [],
                "workloads": figures,
            },
            indent=1,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", help="parts, by comma; a prefix such as time- is enough")
    parser.add_argument("--skip", default="time-", help="likewise, left out")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all")
    parser.add_argument("--results", type=Path, help="file to keep the workloads' figures in")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began, results = time.monotonic(), []
    for part in parts(options.out):
        if options.only and not part.name.startswith(tuple(options.only.split(","))):
            continue
        if not options.only and part.name.startswith(tuple(options.skip.split(","))):
            continue
        left = options.budget - (time.monotonic() - began)
        if left < 10:
            results.append({"part": part.name, "code": "skipped: out of time"})
            continue
        part.limit_s = min(part.limit_s, left)
        results.append(run(part, options.out))
        print(f"\n=== {json.dumps(results[-1])}", flush=True)
        show(options.out / f"{part.name}.log", is_fine=results[-1]["code"] == 0)
        (options.out / "summary.json").write_text(json.dumps(results, indent=1))
        if options.results:
            keep(options.out, results, options.results)
    print("\nSUMMARY " + json.dumps(results))


def show(log: Path, *, is_fine: bool) -> None:
    """Print a log's telling lines, or its end."""
    lines = log.read_text().splitlines()
    telling = [line for line in lines if line.startswith(("BEST", '{"model"', "HOST", "CARD"))]
    print("\n".join(line[:400] for line in (telling if telling and is_fine else lines[-12:])))


if __name__ == "__main__":
    main()
