"""R1 to R28 of the reliability goals: run them, record the figures, make the page.

    python benchmarks/reliability.py [--only R7 --only R10] [--out benchmarks/results/FILE.json]
    python benchmarks/reliability.py --add benchmarks/results/FILE.json
    python benchmarks/reliability.py --page

Each row is a trial against a served model, or tests, or both. Rows are added to the file of
results, each with its command, date and machine, and how busy that was; ``--add`` adds those of
another such file, as of rows that were run elsewhere; ``--page`` writes docs/reliability.md from
the newest one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reliability_parts import page
from reliability_parts.goals import GOALS, Goal
from reliability_parts.outcome import Outcome

SUMMARY = re.compile(r"(\d+) (passed|failed|errors?|skipped)")


def run_tests(goal: Goal) -> Outcome:
    """Run a row's tests, but for their slow forms."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    command += goal.tests.split()
    done = subprocess.run(command, capture_output=True, text=True, cwd=page.ROOT, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    counts = {name: int(count) for count, name in SUMMARY.findall(last)}
    passed, skipped = counts.get("passed", 0), counts.get("skipped", 0)
    left_out = f", {skipped} skipped" if skipped else ""
    bad = "" if done.returncode == 0 else f", {sum(counts.values()) - passed - skipped} fail"
    return Outcome(
        f"{passed} tests pass{left_out}{bad}: {goal.claim}",
        done.returncode == 0 and passed > 0,
        {"tail": done.stdout[-2000:] if done.returncode else ""},
    )


def read_soak() -> Outcome:
    """R14: the newest run of the soak that was an hour long."""
    runs = [(path, json.loads(path.read_text())) for path in page.RESULTS.glob("soak-*.json")]
    path, found = max(runs, key=lambda run: (run[1]["minutes"] >= 60, run[0].name))
    slopes = ", ".join(
        f"{row['process']} {row['slope_mb_per_min']:+.3f}" for row in found["processes"]
    )
    return Outcome(
        f"{found['minutes']:.0f} minutes, {found['requests']} requests: MB a minute {slopes};"
        f" {found['lost_pages']} pages lost, {len(found['server_errors'])} server errors,"
        f" {len(found['log_errors'])} errors in the log",
        not found["failures"] and found["minutes"] >= 60,
        {"file": path.name, "date": found["date"]},
    )


def run_row(key: str, goal: Goal, model: str, minutes: float) -> dict[str, Any]:
    """Return a row of the results; ``minutes`` is how long R13 loads the server."""
    begin_s = time.monotonic()
    outcomes: list[Outcome] = []
    command = f"benchmarks/reliability.py --only {key}"
    if goal.trial == "soak":
        outcomes.append(read_soak())
        command = "benchmarks/soak.py"
    elif goal.trial:
        module, _, name = goal.trial.partition(".")
        trial = getattr(importlib.import_module(f"reliability_parts.{module}"), name)
        outcomes.append(trial(model, minutes) if key == "R13" else trial(model))
    if goal.tests:
        outcomes.append(run_tests(goal))
        if not goal.trial:
            command = f"pytest {goal.tests}"
    return {
        "what": goal.stimulus,
        "figure": "; ".join(outcome.figure for outcome in outcomes),
        "holds": all(outcome.holds for outcome in outcomes),
        "command": command,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "load": round(os.getloadavg()[2], 1),
        "seconds": round(time.monotonic() - begin_s),
        "details": [outcome.details for outcome in outcomes if outcome.details],
    }


def machine() -> str:
    """Return what the figures are of."""
    models = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{models[0] if models else 'unknown processor'}, {os.cpu_count()} cores"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", choices=list(GOALS), help="rows to run")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the overload of R13")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--add", action="append", default=[], type=Path, help="file of other rows")
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    parser.add_argument("--out", type=Path, default=page.RESULTS / f"reliability-{today}.json")
    options = parser.parse_args()
    if options.page:
        page.write()
        return 0
    found: dict[str, Any] = {"machine": machine(), "rows": {}}
    if options.out.is_file():
        found = json.loads(options.out.read_text(encoding="utf-8"))
    for path in options.add:
        other = json.loads(path.read_text(encoding="utf-8"))
        for key, row in other["rows"].items():
            found["rows"][key] = {"machine": other["machine"], **row}
    if options.add:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    holds = True
    for key in options.only or GOALS:
        goal = GOALS[key]
        if not goal.trial and not goal.tests:
            continue
        row = found["rows"][key] = run_row(key, goal, options.model, options.minutes)
        holds &= row["holds"]
        print(
            f"{key} {'holds' if row['holds'] else 'MISSES'} ({row['seconds']} s): {row['figure']}"
        )
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
