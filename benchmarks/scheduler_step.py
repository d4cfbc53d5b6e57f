"""What a step costs on the host: plan, settle and the message, for a full house of rows.

    python benchmarks/scheduler_step.py [--rows 256] [--steps 400] [--shared 512] [--drafts 0]

Four loads: steady decode (nobody comes or goes), churn (each step one request ends and another,
with the same prefix, enters), arrival (all enter at once) and cold (six times as many requests as
rows, with 32 prefixes of 2048 tokens, none of them known: microseconds a request, all of its steps
together). The runner is a list comprehension, its share is not counted. Times are medians in
microseconds a step, with the 99th percentile.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Iterator

from headstock.engine.replies import Replies
from headstock.requests import SamplingParams, TokenIds
from headstock.scheduler import Scheduler
from headstock.wire.messages import Submit
from headstock.wire.steps import PageGroup, RunnerLimits, StepPlan, StepResult

PAGE_TOKENS = 16


def result_of(plan: StepPlan, drafts: int) -> StepResult:
    """Draw token 7 for every row that draws; of ``drafts`` a row, about half prove right."""
    rows = plan.rows
    slots = [s for s, drawn in zip(rows.slots, rows.yields, strict=True) if drawn]
    count = len(slots)
    ready = [drafts] * count if drafts else []
    if max(rows.query_max) > 1 and not plan.host_ids:
        drafted = zip(slots, rows.query_max, strict=True)
        counts = [1 + (plan.step + slot) % query for slot, query in drafted]
        return StepResult(plan.step, slots, counts, [7] * sum(counts), [0] * count, drafts=ready)
    return StepResult(plan.step, slots, [1] * count, [7] * count, [0] * count, drafts=ready)


def build(rows: int, shared: int, drafts: int) -> Scheduler:
    pages = rows * (2048 // PAGE_TOKENS) + shared // PAGE_TOKENS + 1
    group = PageGroup("full", PAGE_TOKENS, 1, pages)
    limits = RunnerLimits(rows, 8192, 4096, 50_000, 2, [group], drafts, max_draft_rows=2 * rows)
    return Scheduler(limits)


def request(number: int, shared: int, max_new_tokens: int) -> Submit:
    prompt = list(range(shared)) + [number % 50_000] * 64
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=0, sampling_seed=0)
    return Submit(id=f"r{number}", prompt_ids=TokenIds(prompt), params=params)


def measure(scheduler: Scheduler, pending: list[StepPlan], steps: int) -> Iterator[float]:
    """Run ``steps`` at depth 2 and yield the seconds of each, the runner's share left out."""
    replies = Replies()
    for _ in range(steps):
        begin = time.perf_counter()
        while len(pending) < 2 and (plan := scheduler.plan(begin)) is not None:
            pending.append(plan)
        planned = time.perf_counter()
        result = result_of(pending.pop(0), scheduler.limits.max_drafts)
        drawn = time.perf_counter()
        replies.add_drawn(scheduler.settle(result, drawn))
        replies.add_ended(scheduler.take_ended())
        replies.take()
        yield planned - begin + time.perf_counter() - drawn


def fill(scheduler: Scheduler, rows: int, shared: int, lengths: list[int]) -> None:
    for number in range(rows):
        scheduler.submit(request(number, shared, lengths[number]), 0.0)


def steady(rows: int, steps: int, shared: int, drafts: int) -> list[float]:
    scheduler = build(rows, shared, drafts)
    fill(scheduler, rows, shared, [1500] * rows)
    return list(measure(scheduler, [], steps + 20))[20:]


def churn(rows: int, steps: int, shared: int, drafts: int) -> list[float]:
    scheduler = build(rows, shared, drafts)
    fill(scheduler, rows, shared, [1 + number for number in range(rows)])
    times: list[float] = []
    pending: list[StepPlan] = []
    for number in range(steps):
        scheduler.submit(request(rows + number, shared, rows), 0.0)
        times += measure(scheduler, pending, 1)
    return times[20:]


def arrival(rows: int, steps: int, shared: int, drafts: int) -> list[float]:
    times: list[float] = []
    for _ in range(max(1, steps // 40)):
        scheduler = build(rows, shared, drafts)
        fill(scheduler, rows, shared, [100] * rows)
        times.append(max(measure(scheduler, [], 8)))
    return times


def cold(rows: int) -> list[float]:
    times: list[float] = []
    for _ in range(3):
        scheduler = build(rows, 2048, 0)
        count = 6 * rows
        params = SamplingParams(max_new_tokens=16, temperature=0, sampling_seed=0)
        for number in range(count):
            prompt = [number % 32, *range(1, 2048), *[number] * 64]
            submit = Submit(id=f"r{number}", prompt_ids=TokenIds(prompt), params=params)
            scheduler.submit(submit, 0.0)
        pending: list[StepPlan] = []
        total = 0.0
        while scheduler.has_work:
            total += sum(measure(scheduler, pending, 1))
        times.append(total / count)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--shared", type=int, default=512, help="prefix tokens that all share")
    parser.add_argument("--drafts", type=int, default=0, help="tokens drafted a row and step")
    options = parser.parse_args()
    report: dict[str, object] = {"python": platform.python_version(), "rows": options.rows}
    for load in (steady, churn, arrival):
        for shared in (0, options.shared):
            times = sorted(load(options.rows, options.steps, shared, options.drafts))
            name = f"{load.__name__}, {shared} shared"
            median_us = statistics.median(times) * 1e6
            p99_us = times[int(len(times) * 0.99)] * 1e6
            report[name] = {"median_us": round(median_us), "p99_us": round(p99_us)}
            print(f"{name:24} median {median_us:7.0f} us   p99 {p99_us:7.0f} us")
    least_us = min(cold(options.rows)) * 1e6
    report["cold, 32 prefixes"] = {"median_us": round(least_us)}
    print(f"{'cold, 32 prefixes':24} a request {least_us:4.0f} us")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
