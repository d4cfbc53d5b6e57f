#!/usr/bin/env python3
"""Show where a workload's time goes on a CUDA card: by kind of step, kernel and gap.

    python benchmarks/cuda_profile.py qwen3-0.6b bs256 --out DIR
    python benchmarks/cuda_profile.py --draw DIR/timeline.json --picture docs/assets/decode.png

The engine runs the workload once to warm up, once timed from the host alone, once traced. A step
on the card begins with ``place_step`` and ends with ``settle_step``; it is a *decode* when no
kernel of longer rows runs in it, else a *prefill* or *mixed* step. Busy is the union of its
kernels' and copies' intervals over the time from its first kernel to the next step's first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

CPU_PHASES = ("receive", "plan", "launch", "result", "settle")


def host_times(engine: Any) -> dict[str, list[float]]:
    """Let the engine loop's phases be timed; return where the seconds are collected."""
    inner = engine._loop._loop._engine
    times: dict[str, list[float]] = defaultdict(list)

    def timed(owner: Any, name: str, label: str) -> None:
        plain = getattr(owner, name)

        def run(*args: Any) -> Any:
            begin = time.perf_counter()
            try:
                return plain(*args)
            finally:
                times[label].append(time.perf_counter() - begin)

        try:
            setattr(owner, name, run)
        except AttributeError:
            return

    timed(inner.scheduler, "plan", "plan")
    timed(inner.scheduler, "settle", "settle")
    timed(inner._runner, "launch", "launch")
    timed(inner._runner, "result", "result")
    timed(inner, "step", "step")
    timed(inner, "receive", "receive")
    return times


def report_host(label: str, wall: float, times: dict[str, list[float]]) -> None:
    for name, values in sorted(times.items()):
        if not values:
            continue
        ordered = sorted(values)
        print(
            f"HOST {label} {name}: {len(values)} calls, sum {sum(values):.3f} s of {wall:.3f},"
            f" median {1e3 * statistics.median(values):.3f} ms,"
            f" p95 {1e3 * ordered[int(0.95 * len(ordered))]:.3f}, max {1e3 * ordered[-1]:.2f}",
            flush=True,
        )


def trace(work: Any, path: Path) -> list[dict[str, Any]]:
    """Run ``work`` under the profiler; return its kernels and copies by begin (us)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as prof:
        work()
        torch.cuda.synchronize()
    prof.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    kinds = {"kernel", "gpu_memcpy", "gpu_memset"}
    found = [
        {"name": e["name"], "ts": float(e["ts"]), "dur": float(e["dur"]), "cat": e["cat"]}
        for e in events
        if e.get("cat") in kinds
    ]
    found.sort(key=lambda e: e["ts"])
    path.unlink()
    return found


def split_steps(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the kernels of each step."""
    steps: list[list[dict[str, Any]]] = []
    for event in events:
        if event["name"].startswith("place_step") or not steps:
            steps.append([])
        steps[-1].append(event)
    return [step for step in steps if step[0]["name"].startswith("place_step")]


def kind_of(step: list[dict[str, Any]]) -> str:
    names = {event["name"] for event in step}
    if "attend_queries" not in names:
        return "decode"
    return "mixed" if "attend_tails" in names else "prefill"


def busy_and_gaps(
    step: list[dict[str, Any]], end: float
) -> tuple[float, list[tuple[float, str, str]]]:
    """Return busy microseconds and the gaps (us, after what, before what)."""
    busy, gaps = 0.0, []
    at, last = step[0]["ts"], ""
    for event in step:
        if event["ts"] > at:
            gaps.append((event["ts"] - at, last, event["name"]))
        busy += max(0.0, event["ts"] + event["dur"] - max(at, event["ts"]))
        if event["ts"] + event["dur"] >= at:
            at, last = event["ts"] + event["dur"], event["name"]
    if end > at:
        gaps.append((end - at, last, "next step"))
    return busy, gaps


def report_card(label: str, events: list[dict[str, Any]]) -> None:
    steps = split_steps(events)
    by_kind: dict[str, list[tuple[float, float, list[Any], list[Any]]]] = defaultdict(list)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        end = following[0]["ts"] if following else step[-1]["ts"] + step[-1]["dur"]
        busy, gaps = busy_and_gaps(step, end)
        by_kind[kind_of(step)].append((end - step[0]["ts"], busy, gaps, step))
    for kind, found in by_kind.items():
        walls = [wall for wall, *_ in found]
        share = sum(busy for _, busy, *_ in found) / sum(walls)
        print(
            f"CARD {label} {kind}: {len(found)} steps, {sum(walls) / 1e6:.3f} s, median"
            f" {statistics.median(walls) / 1e3:.3f} ms, busy {100 * share:.1f}%",
            flush=True,
        )
        totals: dict[str, list[float]] = defaultdict(list)
        for *_, step in found:
            for event in step:
                totals[event["name"]].append(event["dur"])
        for name, times in sorted(totals.items(), key=lambda item: -sum(item[1]))[:14]:
            print(
                f"    {sum(times) / 1e3:9.2f} ms {len(times) / len(found):7.1f} a step"
                f" {statistics.median(times):8.2f} us  {name[:90]}"
            )
        gaps = sorted((gap for _, _, all_gaps, _ in found for gap in all_gaps), reverse=True)
        print(f"    gaps over 20 us: {sum(g for g, *_ in gaps if g > 20) / 1e3:.2f} ms; largest:")
        for gap, before, after in gaps[:5]:
            print(f"      {gap:8.1f} us after {before[:40]} before {after[:40]}")
    print(flush=True)


def report_ramp(label: str, events: list[dict[str, Any]]) -> None:
    """Print each step that is no plain decode: how long it took."""
    steps = split_steps(events)
    ends = [step[0]["ts"] for step in steps[1:]] + [steps[-1][-1]["ts"]]
    shown = [
        f"{kind_of(s)[0]}{(e - s[0]['ts']) / 1e3:.1f}" for s, e in zip(steps, ends, strict=True)
    ]
    print(f"STEPS {label} ms: {' '.join(shown[:80])} … {' '.join(shown[-12:])}", flush=True)


def save_timeline(events: list[dict[str, Any]], path: Path, count: int = 6) -> None:
    """Keep some consecutive decode steps after the middle, and the median step's busy share.

    The step after which a row gets a page, one in 64, begins with that edit; the window has none.
    """
    steps = split_steps(events)
    shares = []
    for step, following in itertools.pairwise(steps):
        busy, _ = busy_and_gaps(step, following[0]["ts"])
        shares.append(busy / (following[0]["ts"] - step[0]["ts"]))
    first = next(
        at
        for at in range(len(steps) // 2, len(steps) - count)
        if not any("Memcpy HtoD" in e["name"] for step in steps[at : at + count] for e in step)
    )
    begin, end = steps[first][0]["ts"], steps[first + count][0]["ts"]
    kept = [[e["name"], e["ts"] - begin, e["dur"]] for s in steps[first : first + count] for e in s]
    share = statistics.median(shares)
    print(f"TIMELINE busy share of a step: median {share:.4f}, mean {statistics.mean(shares):.4f}")
    found = {"span_us": end - begin, "steps": count, "median_busy": share, "events": kept}
    path.write_text(json.dumps(found))


def run(args: argparse.Namespace) -> None:
    from offline import timed
    from workloads import MAX_LENGTH, batches, write_model

    import headstock

    extra = {k: json.loads(v) for k, v in (pair.split("=", 1) for pair in args.set)}
    engine = headstock.Engine(
        model=str(write_model(args.model)), load_format="dummy", skip_tokenizer_init=True,
        dtype="bfloat16", max_model_len=MAX_LENGTH, **extra,
    )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    for workload in args.workloads.split(","):
        for batch in batches(workload, 0):
            timed(engine, batch)
        if workload == args.workloads.split(",")[0]:
            times = host_times(engine)
        for number, batch in enumerate(batches(workload, 1)):
            label = f"{args.model} {batch.label}"
            for values in times.values():
                values.clear()
            figures = timed(engine, batch)
            report_host(label, figures["wall_s"], times)
            if number == 0 and workload == "prefix":
                continue
            events = trace(
                lambda number=number, workload=workload: timed(
                    engine, batches(workload, 2)[number]
                ),
                args.out / "trace.json",
            )
            report_card(label, events)
            report_ramp(label, events)
            if workload == "decode1":
                save_timeline(events, args.out / "timeline.json")
    engine.shutdown()


def draw(timeline: Path, picture: Path) -> None:
    """Draw the kernels of consecutive decode steps, one line a kind of work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kept = json.loads(timeline.read_text())
    lanes = [
        ("step's own", ("place", "last_of", "settle", "advance", "mark", "rows_kernel", "plan_")),
        ("products", ("gemv", "gemm", "nvjet", "cutlass", "dot_", "sm90")),
        ("norm, activation", ("rms_norm", "silu")),
        ("rotate, write", ("rotate",)),
        ("attention", ("attend",)),
        ("sampling", ("argmax", "draw")),
        ("copies, other", ("",)),
    ]
    figure, axes = pyplot.subplots(figsize=(12, 3.4))
    colours = pyplot.get_cmap("tab10").colors
    for name, begin, length in kept["events"]:
        lane = next(i for i, (_, words) in enumerate(lanes) if any(w in name for w in words))
        axes.broken_barh([(begin, length)], (lane - 0.4, 0.8), color=colours[lane])
        if name.startswith("place_step"):
            axes.axvline(begin, color="black", linewidth=0.6)
    events = [{"ts": b, "dur": d, "name": n} for n, b, d in kept["events"]]
    busy, _ = busy_and_gaps(events, kept["span_us"])
    axes.set_yticks(range(len(lanes)), [name for name, _ in lanes])
    axes.invert_yaxis()
    axes.set_xlabel("microseconds")
    axes.set_xlim(0, kept["span_us"])
    step_ms = kept["span_us"] / kept["steps"] / 1e3
    axes.set_title(
        f"{kept['steps']} consecutive decode steps, batch 1: {step_ms:.3f} ms a step,"
        f" card busy {100 * busy / kept['span_us']:.1f}%"
    )
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="qwen3-0.6b")
    parser.add_argument("workloads", nargs="?", default="decode1,bs256")
    parser.add_argument("--out", type=Path, default=Path("profile"))
    parser.add_argument("--set", action="append", default=[], help="name=value for the engine")
    parser.add_argument("--draw", type=Path, help="draw this timeline instead")
    parser.add_argument("--picture", type=Path, default=Path("decode.png"))
    args = parser.parse_args()
    if args.draw:
        draw(args.draw, args.picture)
    else:
        run(args)


if __name__ == "__main__":
    main()
