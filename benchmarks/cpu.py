"""What the CPU engine owes: against transformers on the same weights, against itself, to the byte.

    python benchmarks/cpu.py                    all parts; some minutes on two cores
    python benchmarks/cpu.py --quick            small sizes, to see that it runs
    python benchmarks/cpu.py --parts one,many   some parts

Both sides compute in float32 on the default model's weights, which are dequantised into a folder
first. The sides take turns, round by round, and a ratio is that of their medians: a machine that
slows down slows both. Writes benchmarks/results/cpu-DATE.json.

one      one stream                                    at least as fast as transformers generate
many     16 streams at once                            4 times transformers, one after another
prefix   16 requests on a warm prefix of 512 tokens    3 times the same without the prefix cache
step     planning and settling a step of 256 rows      under 1 ms
server   16 streams over HTTP                          at most 10% longer than the offline engine
memory   peak of the server's processes                weights, planned cache and 600 MB
shipped  the file as it is, 4-bit blocks               no goal: what users get
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import gc
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import scheduler_step
import torch
import transformers

import headstock
from headstock.checkpoint import ModelFiles
from headstock.checkpoint.gguf_model import open_gguf
from headstock.checkpoint.pull import ensure
from headstock.cli.bench_client import Target
from headstock.cli.bench_figures import random_prompts
from headstock.cli.bench_offline import finish_all
from headstock.cli.bench_serve import Load, run_load
from headstock.cli.table import format_table
from headstock.ops.canonical import dequantize
from headstock.text import Tokenizer

ALLOWANCE_BYTES = 600 * 10**6
"""What may be taken beside weights and cache."""
MAX_LENGTH = 1024
RESULTS = Path(__file__).parent / "results"
Prompts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the workloads. Tokens, but for ``streams``, ``rounds`` and ``steps``."""

    prompt: int = 128
    output: int = 64
    streams: int = 16
    prefix: int = 512
    prefix_output: int = 16
    rounds: int = 3
    steps: int = 400


QUICK = Sizes(prompt=32, output=8, streams=4, prefix=128, prefix_output=4, rounds=1, steps=60)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        value: Measured.
        goal: What it should be.
        is_met: Whether it is; None without a goal.
        details: What it was computed from.
    """

    part: str
    what: str
    value: float
    goal: str
    is_met: bool | None
    details: dict[str, Any]


def write_float32(path: Path) -> Path:
    """Write the model in ``path`` with dequantised weights, once; return the folder."""
    folder = Path(tempfile.gettempdir()) / "headstock-bench-models" / f"{path.stem}-float32"
    if not (folder / "done").is_file():
        files = open_gguf(path)
        assert files.read_tokenizer is not None, f"{path} has no tokenizer"
        oracle(files).save_pretrained(folder)
        Tokenizer.from_gguf(files.read_tokenizer()).backend.save(str(folder / "tokenizer.json"))
        (folder / "done").touch()
    return folder


def oracle(files: ModelFiles) -> transformers.LlamaForCausalLM:
    """Return transformers' model of the file's weights."""
    known = set(transformers.LlamaConfig().to_dict()) | {"rope_parameters"}
    config = {name: value for name, value in files.config.items() if name in known}
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    model.to_empty(device="cpu")
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    weights = {
        name: dequantize(
            tensor.layout,
            {part: torch.from_numpy(array) for part, array in tensor.read_all().items()},
            torch.float32,
        )
        for name, tensor in files.index.items()
    }
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model.eval()


class Peer:
    """transformers' generate, one prompt after another."""

    def __init__(self, folder: Path) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def run(self, prompts: Prompts, num_outputs: int) -> float:
        """Return how long all prompts take. Seconds."""
        begin = time.perf_counter()
        with torch.inference_mode():
            for prompt in prompts:
                ids = torch.tensor([prompt])
                made = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    min_new_tokens=num_outputs,
                    max_new_tokens=num_outputs,
                    do_sample=False,
                    pad_token_id=0,
                )
                assert made.shape[1] == len(prompt) + num_outputs, "not as many tokens as asked"
        return time.perf_counter() - begin


def settings(sizes: Sizes) -> dict[str, Any]:
    tokens = sizes.streams * (sizes.prefix + sizes.prompt + sizes.output) + MAX_LENGTH
    return {
        "dtype": "float32",
        "max_model_len": MAX_LENGTH,
        "cache_tokens": tokens,
        "max_running_requests": sizes.streams,
    }


@contextlib.contextmanager
def engine_of(model: Path, sizes: Sizes, **more: Any) -> Iterator[headstock.Engine]:
    """Start an engine, and let it capture what it will replay."""
    with headstock.Engine(model=str(model), **settings(sizes), **more) as engine:
        for _ in range(2):
            ours(engine, prompts_of(engine, sizes, sizes.streams, seed=99), sizes.output)
            ours(engine, prompts_of(engine, sizes, 1, seed=98), sizes.output)
        engine.flush_cache()
        yield engine


def prompts_of(engine: headstock.Engine, sizes: Sizes, count: int, *, seed: int) -> Prompts:
    vocab = engine.card.vocab_size
    return random_prompts(count, sizes.prompt, prefix=0, vocab_size=vocab, seed=seed)


def ours(engine: headstock.Engine, prompts: Prompts, num_outputs: int) -> float:
    """Return how long all prompts take, handed over at once. Seconds."""
    return asyncio.run(finish_all(engine, prompts, num_outputs))


def in_turns(sides: dict[str, Callable[[int], float]], rounds: int) -> dict[str, list[float]]:
    """Run each side once a round; ``side(round)`` returns seconds."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            times[name].append(side(number))
    return times


def ratio(times: dict[str, list[float]], slow: str, fast: str) -> float:
    return statistics.median(times[slow]) / statistics.median(times[fast])


def against_peer(part: str, folder: Path, sizes: Sizes) -> Figure:
    """Compare with transformers: one stream, or many at once with one after another."""
    count, goal = (1, 1.0) if part == "one" else (sizes.streams, 4.0)
    peer = Peer(folder)
    with engine_of(folder, sizes) as engine:
        prompts = [prompts_of(engine, sizes, count, seed=n) for n in range(sizes.rounds)]
        peer.run(prompts[0][:1], 4)
        times = in_turns(
            {
                "transformers": lambda n: peer.run(prompts[n], sizes.output),
                "headstock": lambda n: ours(engine, prompts[n], sizes.output),
            },
            sizes.rounds,
        )
    value = ratio(times, "transformers", "headstock")
    what = f"{count} × {sizes.prompt} in {sizes.output} out: times as fast as transformers"
    return Figure(part, what, value, f"≥ {goal:g}", value >= goal, {"seconds": times})


def prefix(folder: Path, sizes: Sizes) -> Figure:
    """Compare requests on a prefix that is cached with the same on an engine without the cache."""
    with (
        engine_of(folder, sizes) as engine,
        engine_of(folder, sizes, prefix_cache=False) as without,
    ):

        def prompts(number: int) -> Prompts:
            vocab = engine.card.vocab_size
            return random_prompts(
                sizes.streams + 1, 16, prefix=sizes.prefix, vocab_size=vocab, seed=number
            )

        def warm(number: int) -> float:
            first, *others = prompts(number)
            ours(engine, [first], 1)
            return ours(engine, others, sizes.prefix_output)

        def cold(number: int) -> float:
            _, *others = prompts(number)
            return ours(without, others, sizes.prefix_output)

        times = in_turns({"without": cold, "with": warm}, sizes.rounds)
    value = ratio(times, "without", "with")
    what = f"{sizes.streams} requests on a warm prefix of {sizes.prefix}: times as fast as without"
    return Figure("prefix", what, value, "≥ 3", value >= 3, {"seconds": times})


def step(sizes: Sizes) -> Figure:
    """Measure what the scheduler costs a step."""
    times = scheduler_step.steady(256, sizes.steps, 0)
    value = statistics.median(times) * 1e3
    details = {"p99_ms": sorted(times)[int(len(times) * 0.99)] * 1e3}
    return Figure("step", "planning and settling 256 rows: ms", value, "< 1", value < 1, details)


class PeakMemory(threading.Thread):
    """Watches how much memory a process and its children hold that nothing else could have.

    Pages of files, such as libraries and a mapped checkpoint, are left out: the machine takes them
    back when it needs them.
    """

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self._process = process
        self.peak = 0
        """Of all processes together. Bytes."""
        self.is_over = threading.Event()

    def run(self) -> None:
        while not self.is_over.wait(0.02):
            with contextlib.suppress(psutil.Error):
                processes = [self._process, *self._process.children(recursive=True)]
                self.peak = max(self.peak, sum(map(own_bytes, processes)))


def own_bytes(process: psutil.Process) -> int:
    """Return the bytes of a process that are not pages of files."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return process.memory_info().rss if not Path("/proc").is_dir() else 0
    return sum(1024 * int(kb) for kb in re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))


@contextlib.contextmanager
def server_of(model: Path, sizes: Sizes) -> Iterator[tuple[str, PeakMemory]]:
    """Serve while the block runs; yields the URL, and the memory from the first moment on."""
    words = [sys.executable, "-m", "headstock.cli", "serve", str(model), "--port", "0"]
    for name, value in settings(sizes).items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(words, stderr=log) as process:
        watch = PeakMemory(psutil.Process(process.pid))
        watch.start()
        try:
            yield _url(process, log), watch
        finally:
            watch.is_over.set()
            process.terminate()


def _url(process: subprocess.Popen[bytes], log: Any) -> str:
    while process.poll() is None:
        log.seek(0)
        match = re.search(r"url \.+ (http://\S+)", log.read())
        if match and httpx.get(f"{match[1]}/ready").status_code == 200:
            return match[1]
        time.sleep(0.2)
    log.seek(0)
    raise SystemExit(f"The server did not start:\n{log.read()}")


def served(url: str, prompts: Prompts, num_outputs: int) -> float:
    """Return how long all prompts take, streamed at once. Seconds."""
    body = {"max_tokens": num_outputs, "ignore_eos": True, "temperature": 0.0}
    body["model"] = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    load = Load(prompts=prompts, body=body, request_rate=None, max_concurrency=len(prompts), seed=0)
    begin = time.perf_counter()
    answers = asyncio.run(run_load(Target(url, {}), load, lambda _: None))
    wall = time.perf_counter() - begin
    errors = [answer.error for answer in answers if answer.error]
    assert not errors, f"requests failed: {errors[:3]}"
    assert {answer.output_tokens for answer in answers} == {num_outputs}, "not as many as asked"
    return wall


def server(folder: Path, sizes: Sizes) -> Figure:
    """Compare streams over HTTP with the offline engine."""
    with server_of(folder, sizes) as (url, _), engine_of(folder, sizes) as engine:
        prompts = [prompts_of(engine, sizes, sizes.streams, seed=n) for n in range(sizes.rounds)]
        for seed in (98, 99):
            served(url, prompts_of(engine, sizes, sizes.streams, seed=seed), sizes.output)
        times = in_turns(
            {
                "offline": lambda n: ours(engine, prompts[n], sizes.output),
                "server": lambda n: served(url, prompts[n], sizes.output),
            },
            sizes.rounds,
        )
    value = 100 * (ratio(times, "server", "offline") - 1)
    what = f"{sizes.streams} streams over HTTP: % longer than offline"
    return Figure("server", what, value, "< 10", value < 10, {"seconds": times})


def memory(folder: Path, sizes: Sizes) -> Figure:
    """Compare the peak of the server's processes, loading and under load, with what was planned."""
    with server_of(folder, sizes) as (url, watch):
        count = 4 * sizes.streams
        load = random_prompts(count, sizes.prompt, prefix=0, vocab_size=30_000, seed=5)
        served(url, load, sizes.output)
        planned = httpx.get(f"{url}/server_info").json()
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    cache = cache_bytes(folder, planned["max_total_num_tokens"])
    value = watch.peak - weights - cache
    what = "peak of all processes beside weights and planned cache: MB"
    goal = ALLOWANCE_BYTES
    details = {"peak_bytes": watch.peak, "weight_bytes": weights, "cache_bytes": cache}
    return Figure("memory", what, value / 1e6, f"< {goal // 10**6}", value < goal, details)


def cache_bytes(folder: Path, num_tokens: int) -> int:
    config = json.loads((folder / "config.json").read_text())
    heads = config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    return num_tokens * heads * 2 * 4


def shipped(path: Path, sizes: Sizes) -> Figure:
    """Time one stream, and many, on the file as it is."""
    with engine_of(path, sizes) as engine:
        times = in_turns(
            {
                "one": lambda n: ours(engine, prompts_of(engine, sizes, 1, seed=n), sizes.output),
                "many": lambda n: ours(
                    engine, prompts_of(engine, sizes, sizes.streams, seed=n), sizes.output
                ),
            },
            sizes.rounds,
        )
    rates = {
        name: count * sizes.output / statistics.median(times[name])
        for name, count in (("one", 1), ("many", sizes.streams))
    }
    what = f"{sizes.streams} streams of the 4-bit file: output tokens a second"
    return Figure("shipped", what, rates["many"], "", None, {"tokens_per_s": rates})


def machine() -> dict[str, Any]:
    """Describe where this ran."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "load_before": os.getloadavg()[0],
    }


def measure(parts: Sequence[str], sizes: Sizes) -> Iterator[Figure]:
    """Yield a figure a part."""
    path = ensure("smollm2")
    folder = write_float32(path)
    gc.collect()
    ways: dict[str, Callable[[], Figure]] = {
        "one": lambda: against_peer("one", folder, sizes),
        "many": lambda: against_peer("many", folder, sizes),
        "prefix": lambda: prefix(folder, sizes),
        "step": lambda: step(sizes),
        "server": lambda: server(folder, sizes),
        "memory": lambda: memory(folder, sizes),
        "shipped": lambda: shipped(path, sizes),
    }
    for part in parts:
        yield ways[part]()
        gc.collect()


PARTS = ("one", "many", "prefix", "step", "server", "memory", "shipped")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="comma separated")
    parser.add_argument("--quick", action="store_true", help="small sizes; nothing is written")
    parser.add_argument("--rounds", type=int, help=f"default {Sizes.rounds}")
    parser.add_argument("--output-file", type=Path, help="in place of results/cpu-DATE.json")
    options = parser.parse_args()
    parts = options.parts.split(",")
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; parts: {', '.join(PARTS)}")
    sizes = QUICK if options.quick else Sizes(rounds=options.rounds or Sizes.rounds)
    report: dict[str, Any] = {"command": " ".join(sys.argv), "machine": machine(), "figures": []}
    rows: list[tuple[str, ...]] = []
    for figure in measure(parts, sizes):
        met = {True: "yes", False: "NO", None: ""}[figure.is_met]
        rows.append((figure.part, f"{figure.value:.2f}", figure.goal, met, figure.what))
        report["figures"].append({name: getattr(figure, name) for name in Figure.__slots__})
        print("  ".join(rows[-1]), file=sys.stderr, flush=True)
    print(format_table(("part", "value", "goal", "met", "what"), rows))
    target = options.output_file
    if target is None and not options.quick:
        target = RESULTS / f"cpu-{datetime.date.today()}.json"
    if target is not None:
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(report, indent=2) + "\n")
        print(f"written to {target}")
    return 0 if all(figure["is_met"] is not False for figure in report["figures"]) else 1


if __name__ == "__main__":
    sys.exit(main())
