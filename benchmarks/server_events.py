#!/usr/bin/env python3
"""What a streamed token costs the API process, without a device.

    python benchmarks/server_events.py [--route generate-ids ...] [--streams 256] [--outputs 256]

The API process is `headstock serve`'s own; behind it the real engine loop and scheduler run on a
stand-in runner that draws one token a row every --step-ms. Counted is processor time, user and
system, which a busy machine disturbs less than the clock. Each route runs twice: with one token a
stream, which is what a request costs, and with --outputs, whose difference is what a token costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import psutil
from server_streams import one, wait_ready
from workloads import batches

from headstock.wire.steps import PageGroup, RunnerLimits, StepPlan, StepResult

MODEL = "smollm2"
MAX_LENGTH = 2048
PAGE_TOKENS = 16
CLIENTS = 2
TEXT = (
    "A lathe turns the work against a tool that stands still. The headstock drives it, and takes"
    " whatever chuck fits the job; the tailstock holds the far end. "
)
ROUTES = {
    "generate-ids": "/generate",
    "generate-text": "/generate",
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
}
"""Name to path; only ``generate-ids`` is served without a tokenizer."""


# The stand-in engine, a process of its own


class PacedRunner:
    """Draws one token a row, and settles a step every ``step_s``."""

    def __init__(self, rows: int, step_s: float, token_ids: list[int]) -> None:
        pages = PageGroup("full", PAGE_TOKENS, 1, rows * MAX_LENGTH // PAGE_TOKENS + 1)
        self.limits = RunnerLimits(rows, rows * MAX_LENGTH, MAX_LENGTH, 49152, 2, [pages])
        self._step_s = step_s
        self._token_ids = token_ids
        self._left = [0] * rows
        self._due_s = 0.0

    def launch(self, plan: StepPlan) -> StepPlan:
        for admitted in plan.admit:
            self._left[admitted.slot] = admitted.max_outputs - admitted.num_outputs
        return plan

    def result(self, plan: StepPlan) -> StepResult:
        now = time.monotonic()
        self._due_s = max(now, self._due_s + self._step_s)
        time.sleep(self._due_s - now)
        slots = [s for s, drawn in zip(plan.rows.slots, plan.rows.yields, strict=True) if drawn]
        counts = [int(self._left[slot] > 0) for slot in slots]
        for slot, count in zip(slots, counts, strict=True):
            self._left[slot] -= count
        ids = [self._token_ids[(plan.step + s) % len(self._token_ids)] for s in range(sum(counts))]
        return StepResult(plan.step, slots, counts, ids, [int(not self._left[s]) for s in slots])

    def close(self) -> None:
        pass


def run_engine(address: str, parent: str, rows: str, step_ms: str, token_ids: str) -> None:
    from headstock.config.schema import CacheSettings, SchedulerSettings
    from headstock.engine import EngineLoop, build_engine
    from headstock.server.orphans import die_with_parent
    from headstock.wire.messages import Started
    from headstock.wire.transport import ZmqMailbox

    die_with_parent(int(parent))
    mailbox = ZmqMailbox(address)
    runner = PacedRunner(int(rows), float(step_ms) / 1e3, json.loads(token_ids))
    engine = build_engine(
        runner, SchedulerSettings(max_queued_tokens=2**30), CacheSettings(prefix_cache=False)
    )
    mailbox.send([Started(limits=runner.limits)])
    EngineLoop(engine, mailbox).run()


# The API process: `headstock serve` with another engine's command line


class Silent:
    """A display that shows nothing."""

    def pull(self) -> None:
        return None

    def progress(self, *_: Any) -> None:
        pass

    ready = restarted = progress


def run_api(port: str, has_tokenizer: str, *engine: str) -> None:
    from headstock.assemble import serve
    from headstock.config import ServeSettings, settings_from_call
    from headstock.observe.log import set_up_logging

    def command(_: Any, address: str) -> list[str]:
        return [sys.executable, __file__, "engine", address, str(os.getpid()), *engine]

    serve.engine_command = command
    set_up_logging("info", "text")
    given = {"model": MODEL, "port": int(port), "skip_tokenizer_init": has_tokenizer == "0"}
    serve.serve_model(settings_from_call(ServeSettings, given), Silent())


# Clients and figures


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time of one run, user and system. Seconds."""

    wall_s: float
    api_s: float
    api_kernel_s: float
    engine_s: float
    events: int


def body_of(route: str, prompt: list[int], outputs: int) -> bytes:
    more = {"max_tokens": outputs, "temperature": 0.0, "ignore_eos": True}
    sampling = {"max_new_tokens": outputs, "temperature": 0.0, "ignore_eos": True}
    body: dict[str, Any] = {
        "generate-ids": {"input_ids": prompt, "sampling_params": sampling},
        "generate-text": {"text": f"{prompt[0]} {TEXT}", "sampling_params": sampling},
        "chat": {"messages": [{"role": "user", "content": f"{prompt[0]} {TEXT}"}], **more},
        "completions": {"prompt": f"{prompt[0]} {TEXT}", **more},
    }[route]
    return json.dumps(body | {"stream": True}).encode()


def client(port: int, path: str, bodies: list[bytes], begin: float, results: Any) -> None:
    async def everything() -> int:
        go = asyncio.Event()
        tasks = [asyncio.ensure_future(one(port, body, go, path)) for body in bodies]
        await asyncio.sleep(max(0.0, begin - time.time()))
        go.set()
        return sum(events for events, *_ in await asyncio.gather(*tasks))

    results.put(asyncio.run(everything()))


def seconds(process: psutil.Process) -> tuple[float, float]:
    """Return its processor time, and how much of it was the kernel's. Seconds."""
    times = process.cpu_times()
    return times.user + times.system, times.system


def run_once(api: psutil.Process, port: int, route: str, bodies: list[bytes]) -> Cost:
    [engine] = [child for child in api.children() if "engine" in child.cmdline()]
    results: Any = multiprocessing.Queue()
    begin = time.time() + 1.0
    clients = [
        multiprocessing.Process(
            target=client, args=(port, ROUTES[route], bodies[i::CLIENTS], begin, results)
        )
        for i in range(CLIENTS)
    ]
    for process in clients:
        process.start()
    time.sleep(max(0.0, begin - 0.05 - time.time()))
    before = (*seconds(api), seconds(engine)[0])
    events = sum(results.get(timeout=300) for _ in clients)
    wall_s = time.time() - begin
    after = (*seconds(api), seconds(engine)[0])
    for process in clients:
        process.join()
    return Cost(wall_s, *(b - a for a, b in zip(before, after, strict=True)), events)


def measure(route: str, args: argparse.Namespace, token_ids: list[int]) -> dict[str, Any]:
    has_tokenizer = "0" if route == "generate-ids" else "1"
    command = [
        sys.executable, __file__, "api", str(args.port), has_tokenizer, str(args.streams),
        str(args.step_ms), json.dumps(token_ids),
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_ready(args.port, process, 60)
        api = psutil.Process(process.pid)
        prompts = batches("bs256", 0)[0].prompts
        costs: list[Cost] = []
        for outputs in (1, 1, args.outputs):  # the first one warms up
            bodies = [
                body_of(route, prompts[i % len(prompts)], outputs) for i in range(args.streams)
            ]
            costs.append(run_once(api, args.port, route, bodies))
    finally:
        process.terminate()
        process.wait(30)
    _, short, long = costs
    tokens = args.streams * (args.outputs - 1)
    event_s = (long.api_s - short.api_s) / tokens
    return {
        "route": route,
        "api_us_per_token": round(1e6 * event_s, 1),
        "of_it_kernel_us": round(1e6 * (long.api_kernel_s - short.api_kernel_s) / tokens, 1),
        "tokens_per_s_of_one_process": round(1 / event_s),
        "events_per_token": round((long.events - short.events) / tokens, 3),
        "engine_us_per_step": round(1e6 * (long.engine_s - short.engine_s) / (args.outputs - 1)),
        "api_us_per_request": round(1e6 * short.api_s / args.streams),
        "engine_us_per_request": round(1e6 * short.engine_s / args.streams),
        "intake_wall_ms": round(1e3 * short.wall_s),
        "wall_s": round(long.wall_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--route", action="append", choices=ROUTES)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--outputs", type=int, default=256)
    parser.add_argument("--step-ms", type=float, default=30.0)
    parser.add_argument("--port", type=int, default=31017)
    args = parser.parse_args()

    from headstock.checkpoint import resolve
    from headstock.text import Tokenizer

    files = resolve(MODEL)
    assert files.read_tokenizer is not None, f"{MODEL} has no tokenizer"
    token_ids = Tokenizer.from_gguf(files.read_tokenizer()).encode(TEXT)
    files.close()
    for route in args.route or ROUTES:
        print(json.dumps(measure(route, args, token_ids)), flush=True)


if __name__ == "__main__":
    roles = {"engine": run_engine, "api": run_api}
    if len(sys.argv) > 1 and sys.argv[1] in roles:
        roles[sys.argv[1]](*sys.argv[2:])
    else:
        main()
