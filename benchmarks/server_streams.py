#!/usr/bin/env python3
"""Time the HTTP server on `bs256` of `workloads.py`, every request a stream of its own.

    python benchmarks/server_streams.py qwen3-8b --out server.jsonl

Starts ``headstock serve`` without a tokenizer, sends the prompts as token ids to ``/generate`` from
several client processes at once, and counts the events: each token must come as one. One warm-up
run, then the median of --runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from workloads import MAX_LENGTH, MODELS, Batch, batches, write_model

CLIENTS = 8


def body_of(batch: Batch, prompt: list[int]) -> bytes:
    sampling = {"temperature": 0.0, "max_new_tokens": batch.num_outputs, "ignore_eos": True}
    return json.dumps({"input_ids": prompt, "sampling_params": sampling, "stream": True}).encode()


async def one(
    port: int, body: bytes, go: asyncio.Event, path: str = "/generate"
) -> tuple[int, float, float]:
    """Send one request once ``go`` is set; return its events, and when the first and last came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    await go.wait()
    writer.write(head.encode() + body)
    events, first, rest, last = 0, 0.0, b"", b""
    while chunk := await reader.read(1 << 16):
        if not first and b"data:" in chunk:
            first = time.time()
        # An event's mark may be cut in two by the end of a chunk.
        text = rest + chunk
        events += text.count(b"data: {")
        cut = text.rfind(b"\n")
        rest = text[cut + 1 :] if b"data: {" not in text[cut + 1 :] else b""
        last = (last + chunk)[-200:]
    writer.close()
    assert b"[DONE]" in last, f"a stream ended with {last!r}"
    return events, first, time.time()


def client(port: int, bodies: list[bytes], begin: float, results: Any) -> None:
    """Run in a process of its own: send ``bodies`` at the time ``begin``."""

    async def everything() -> list[tuple[int, float, float]]:
        go = asyncio.Event()
        tasks = [asyncio.ensure_future(one(port, body, go)) for body in bodies]
        await asyncio.sleep(max(0.0, begin - time.time()))
        go.set()
        return await asyncio.gather(*tasks)

    try:
        results.put(asyncio.run(everything()))
    except Exception as error:  # noqa: BLE001 - the parent reports it
        results.put(f"{type(error).__name__}: {error}")


def timed(port: int, batch: Batch) -> dict[str, float]:
    """Run one batch; return wall seconds, events and the median time to the first."""
    results: Any = multiprocessing.Queue()
    begin = time.time() + 1.5
    shares = [batch.prompts[i::CLIENTS] for i in range(CLIENTS)]
    clients = [
        multiprocessing.Process(
            target=client, args=(port, [body_of(batch, p) for p in share], begin, results)
        )
        for share in shares
    ]
    for process in clients:
        process.start()
    found: list[tuple[int, float, float]] = []
    for _ in clients:
        got = results.get(timeout=120)
        if isinstance(got, str):
            raise SystemExit(got)
        found += got
    for process in clients:
        process.join()
    events = sum(count for count, *_ in found)
    wall = max(last for *_, last in found) - begin
    ttft = statistics.median(first for _, first, _ in found) - begin
    return {"wall_s": wall, "events": events, "ttft_ms": 1e3 * ttft}


def wait_ready(port: int, process: subprocess.Popen, limit_s: float) -> float:
    begin = time.monotonic()
    while time.monotonic() - begin < limit_s:
        if process.poll() is not None:
            raise SystemExit(f"The server ended with {process.returncode}.")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return time.monotonic() - begin
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"The server was not ready within {limit_s} s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--workload", default="bs256")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--port", type=int, default=31007)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--flag", action="append", default=[], help="more flags of serve")
    args = parser.parse_args()
    command = [
        sys.executable, "-m", "headstock.cli", "serve", "--model", str(write_model(args.model)),
        "--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16",
        "--max-model-len", str(MAX_LENGTH), "--port", str(args.port), *args.flag,
    ]  # fmt: skip
    process = subprocess.Popen(command)
    try:
        ready_s = wait_ready(args.port, process, 120)
        found = [timed(args.port, batches(args.workload, run)[0]) for run in range(args.runs + 1)]
    finally:
        process.terminate()
        process.wait(30)
    counted = found[1:]
    batch = batches(args.workload, 0)[0]
    tokens = batch.num_outputs * len(batch.prompts)
    wall = statistics.median(each["wall_s"] for each in counted)
    record = {
        "model": args.model,
        "workload": f"server_{batch.label}",
        "runs": args.runs,
        "exec_to_ready_s": ready_s,
        "wall_s": wall,
        "output_tokens_per_s": tokens / wall,
        "ttft_ms": statistics.median(each["ttft_ms"] for each in counted),
        "events_per_token": counted[-1]["events"] / tokens,
    }
    print(json.dumps(record), flush=True)
    if args.out:
        args.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
