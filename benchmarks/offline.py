#!/usr/bin/env python3
"""Time the offline engine on the workloads of `workloads.py`; one JSON line per workload.

    python benchmarks/offline.py qwen3-0.6b --workloads decode1,bs256 --out results.jsonl

Medians of --runs counted runs after one warm-up run. TTFT and TPOT come from one streamed pass
outside the counted runs: medians over its requests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from pathlib import Path
from typing import Any

import psutil
from workloads import MAX_LENGTH, MODELS, Batch, batches, write_model

import headstock


def sampling(batch: Batch) -> dict[str, Any]:
    return {"temperature": 0.0, "max_new_tokens": batch.num_outputs, "ignore_eos": True}


def timed(engine: headstock.Engine, batch: Batch) -> dict[str, float]:
    """Run one batch and return wall seconds, output tokens and cached prompt tokens."""
    start = time.perf_counter()
    results = engine.generate(input_ids=batch.prompts, sampling_params=sampling(batch))
    wall = time.perf_counter() - start
    got = sum(result["meta_info"]["completion_tokens"] for result in results)
    want = batch.num_outputs * len(batch.prompts)
    assert got == want, f"{batch.label}: {got} output tokens, not {want}"
    cached = sum(result["meta_info"]["cached_tokens"] for result in results)
    return {"wall_s": wall, "output_tokens": got, "cached_tokens": cached}


def latencies(engine: headstock.Engine, batch: Batch) -> dict[str, float]:
    """Stream one batch and return the medians of TTFT and TPOT over its requests."""

    async def one(prompt: list[int]) -> tuple[float, float]:
        start = time.perf_counter()
        stream = await engine.async_generate(
            input_ids=prompt, sampling_params=sampling(batch), stream=True
        )
        times = [time.perf_counter() async for _ in stream]
        return times[0] - start, (times[-1] - times[0]) / max(1, batch.num_outputs - 1)

    async def everything() -> list[tuple[float, float]]:
        return await asyncio.gather(*(one(prompt) for prompt in batch.prompts))

    pairs = asyncio.run(everything())
    return {
        "ttft_ms": 1e3 * statistics.median(first for first, _ in pairs),
        "tpot_ms": 1e3 * statistics.median(each for _, each in pairs),
    }


def measure(engine: headstock.Engine, workload: str, runs: int) -> list[dict[str, Any]]:
    """Return one record per batch of ``workload``."""
    per_label: dict[str, list[dict[str, float]]] = {}
    for run in range(runs + 1):
        for batch in batches(workload, run):
            figures = timed(engine, batch)
            if run:
                per_label.setdefault(batch.label, []).append(figures)
    streamed = {b.label: latencies(engine, b) for b in batches(workload, runs + 1)}
    records: list[dict[str, Any]] = []
    for label, figures in per_label.items():
        walls = [f["wall_s"] for f in figures]
        records.append(
            {
                "workload": label,
                "runs": runs,
                "wall_s": statistics.median(walls),
                "best_wall_s": min(walls),
                "output_tokens_per_s": figures[0]["output_tokens"] / statistics.median(walls),
                "cached_tokens": figures[-1]["cached_tokens"],
                **streamed[label],
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("--workloads", default="decode1,bs256,prefix,long")
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--backend")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--set", action="append", default=[], help="name=value for the engine")
    args = parser.parse_args()
    extra = {k: json.loads(v) for k, v in (pair.split("=", 1) for pair in args.set)}
    start = time.perf_counter()
    engine = headstock.Engine(
        model=str(write_model(args.model)),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype=args.dtype,
        max_model_len=MAX_LENGTH,
        backend=args.backend,
        **extra,
    )
    ready_s = time.perf_counter() - start
    since_exec_s = time.time() - psutil.Process().create_time()
    facts = {"ready_s": ready_s, "exec_to_ready_s": since_exec_s, "settings": extra}
    lines = [json.dumps({"model": args.model, **facts})]
    print(lines[0], flush=True)
    for workload in args.workloads.split(","):
        for record in measure(engine, workload, args.runs):
            lines.append(json.dumps({"model": args.model, **record}))
            print(lines[-1], flush=True)
    engine.shutdown()
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
