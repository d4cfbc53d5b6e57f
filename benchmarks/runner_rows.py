"""What the runner's host side of a step costs: admissions and rows, without a model.

    python benchmarks/runner_rows.py [--rows 256] [--repeats 30]

Times are the smallest of the repeats, in microseconds of processor time a step: entering so many
admissions with four pages each; reading and sending the rows of a step of prompts, and of one in
which one row of all is a prompt. The device is the host.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from headstock.plugins.host import HostDevice
from headstock.runner.options import PaddedSizes
from headstock.runner.upload import Upload
from headstock.wire.steps import (
    DRAW,
    FROM_DEVICE,
    FROM_HOST,
    Admit,
    PageAppends,
    PageGroup,
    Rows,
    RunnerLimits,
    StepPlan,
)

PAGES = 4
PROMPT = 64


def plan_of(rows: int, *, num_prompts: int, has_admits: bool) -> StepPlan:
    """Return a plan of so many rows, the first ``num_prompts`` of them prompts."""
    slots = list(range(rows))
    queries = [PROMPT] * num_prompts + [1] * (rows - num_prompts)
    sources = [FROM_HOST] * num_prompts + [FROM_DEVICE] * (rows - num_prompts)
    columns = Rows(slots, queries, [PROMPT] * rows, sources, [DRAW] * rows, [0] * rows)
    admits = [Admit(slot, 0, 0, 100, stop_ids=[2, 3], seed=slot) for slot in slots]
    append = PageAppends(
        [0] * rows * PAGES,
        [slot for slot in slots for _ in range(PAGES)],
        list(range(PAGES)) * rows,
        list(range(1, 1 + rows * PAGES)),
    )
    host_ids = [7] * PROMPT * num_prompts
    if not has_admits:
        return StepPlan(1, columns, host_ids)
    return StepPlan(1, columns, host_ids, admit=admits, append=append)


def least_us(repeats: int, run: Callable[[], object], after: Callable[[], object]) -> int:
    times: list[float] = []
    for _ in range(repeats):
        begin = time.thread_time()
        run()
        times.append(time.thread_time() - begin)
        after()
    return round(min(times) * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    rows = options.rows
    limits = RunnerLimits(
        rows, rows * PROMPT, 4096, 50_000, 2, [PageGroup("full", 16, 1, 1 + rows * PAGES)]
    )
    sizes = PaddedSizes(max_tokens=rows * PROMPT, max_rows=rows)
    upload = Upload(HostDevice(num_threads=1), limits, sizes)
    arriving = plan_of(rows, num_prompts=rows, has_admits=True)
    prompts = plan_of(rows, num_prompts=rows, has_admits=False)
    mixed = plan_of(rows, num_prompts=1, has_admits=False)

    def rows_of(plan: StepPlan) -> None:
        num_tokens = sum(plan.rows.query_max)
        upload.send_rows(upload.read_rows(plan), (num_tokens, rows))

    def nothing() -> None:
        return

    report = {
        "admissions": least_us(
            options.repeats, lambda: upload.enter(arriving), lambda: rows_of(prompts)
        ),
        "rows, all prompts": least_us(options.repeats, lambda: rows_of(prompts), nothing),
        "rows, one prompt": least_us(options.repeats, lambda: rows_of(mixed), nothing),
    }
    for name, figure in report.items():
        print(f"{name:20} {figure:7} us")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
