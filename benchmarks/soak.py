"""Whether a server that is used for an hour grows: memory, descriptors, threads, pages.

    python benchmarks/soak.py [--minutes 60] [--rate 2] [--out benchmarks/results/soak-DATE.json]

A served SmolLM2 under a mixed load: chats and streams of several protocols, streams whose clients
leave, schemas, patterns, tools, several answers, aborts, and what must be refused. Memory is
RssAnon + VmSwap of each process, looked at each 30 s; its slope is by least squares over the second
half.
At the end every page must be free or cached, and after a flush all must be free.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from reliability_parts.load import TEMPLATE, Load
from reliability_parts.memory import Sample, family, look, slope_per_minute

from tests.e2e.served import SMALL, Served, served

LOOK_EVERY_S = 30.0
MIN_LOOKS = 20
MAX_SLOPE = 0.2
"""What memory may grow by. MB a minute."""
AT_ONCE = 32


async def drive(server: Served, minutes: float, rate: float, seed: int, looks: Looks) -> Load:
    """Send requests at ``rate`` a second for ``minutes``, at most ``AT_ONCE`` at once."""
    async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
        load = Load(client, seed)
        tasks: set[asyncio.Task[None]] = set()
        begin_s = next_s = time.monotonic()
        while time.monotonic() < begin_s + 60 * minutes:
            looks.take_if_due()
            if len(tasks) < AT_ONCE:
                task = asyncio.create_task(load.one())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            next_s = max(time.monotonic() - 1 / rate, next_s + 1 / rate)
            await asyncio.sleep(max(0.0, next_s - time.monotonic()))
        await asyncio.gather(*tasks)
    return load


class Looks:
    """What each process of the server held, over time."""

    def __init__(self, pid: int, every_s: float) -> None:
        self._pid = pid
        self._every_s = every_s
        self._begin_s = time.monotonic()
        self._next_s = 0.0
        self.names: dict[int, str] = {}
        self.samples: dict[int, list[Sample]] = defaultdict(list)

    def take_if_due(self) -> None:
        now_s = time.monotonic() - self._begin_s
        if now_s < self._next_s:
            return
        self._next_s += self._every_s
        for pid, name in family(self._pid).items():
            sample = look(pid, now_s)
            if sample is not None:
                self.names[pid] = name
                self.samples[pid].append(sample)

    def report(self) -> list[dict[str, Any]]:
        """Return each process's figures; the slope is of the second half of the run."""
        end_s = time.monotonic() - self._begin_s
        rows: list[dict[str, Any]] = []
        for pid, samples in self.samples.items():
            late = [sample for sample in samples if sample.at_s >= end_s / 2]
            if len(late) < 2:
                continue  # it has ended: what it held is free
            rows.append(
                {
                    "process": self.names[pid],
                    "samples": len(samples),
                    "anon_mb_first_half_last": [
                        round(samples[0].anon_mb, 2), round(late[0].anon_mb, 2),
                        round(late[-1].anon_mb, 2),
                    ],
                    "slope_mb_per_min": round(slope_per_minute(late), 4),
                    "descriptors_half_last": [late[0].descriptors, late[-1].descriptors],
                    "threads_half_last": [late[0].threads, late[-1].threads],
                    "anon_mb": [round(sample.anon_mb, 2) for sample in samples],
                }
            )  # fmt: skip
        return rows


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Run the soak and return its figures."""
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "chat.jinja"
        template.write_text(TEMPLATE, encoding="utf-8")
        return soak_with(options, str(template))


def soak_with(options: argparse.Namespace, template: str) -> dict[str, Any]:
    """Run the soak with a chat template that speaks of tools."""
    with served(options.model, *SMALL, "--chat-template", template, nice=options.nice) as server:
        looks = Looks(server.process.pid, min(LOOK_EVERY_S, 60 * options.minutes / MIN_LOOKS))
        load = asyncio.run(drive(server, options.minutes, options.rate, options.seed, looks))
        lost_pages = server.lost_pages()
        flushed = server.post("/flush_cache")
        after = server.idle_state()
        log = server.log
        exit_code = server.terminate()
    rows = looks.report()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": "python " + " ".join(sys.argv),
        "machine": {"processor": platform.processor(), "cpus": os.cpu_count()},
        "minutes": options.minutes,
        "requests": sum(load.answers.values()),
        "answers": dict(sorted(load.answers.items())),
        "server_errors": load.server_errors[:20],
        "processes": rows,
        "largest_slope_mb_per_min": max((row["slope_mb_per_min"] for row in rows), default=0.0),
        "lost_pages": lost_pages,
        "pages_free_after_flush": [after["free_pages"], after["total_pages"]],
        "flush_status": flushed.status_code,
        "log_errors": [line[:200] for line in log.splitlines() if " ERROR " in line][:20],
        "exit_code": exit_code,
    }


def failures(result: dict[str, Any]) -> list[str]:
    """Return what does not hold."""
    free, total = result["pages_free_after_flush"]
    checks = {
        f"memory grows by more than {MAX_SLOPE} MB/min": result["largest_slope_mb_per_min"]
        > MAX_SLOPE,
        "pages are lost": result["lost_pages"] != 0 or free != total,
        "no process was looked at often enough": not result["processes"],
        "there were server errors": bool(result["server_errors"]),
        "there are errors in the log": bool(result["log_errors"]),
        "it did not end cleanly": result["exit_code"] != 0,
    }
    return [problem for problem, is_so in checks.items() if is_so]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--nice", type=int, default=0, help="added to the server's niceness")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = soak(options)
    result["failures"] = failures(result)
    text = json.dumps(result, indent=1)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    for row in result["processes"]:
        row.pop("anon_mb")
    print(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
