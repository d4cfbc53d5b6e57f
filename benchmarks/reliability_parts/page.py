"""The page of figures, made from the goals and from what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reliability_parts.goals import GOALS, Goal

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "reliability.md"
HEAD = """# Reliability: goals and figures

What must hold when clients are rude and processes die, and the figure that was reached. This page
is made by `benchmarks/reliability.py` from `benchmarks/results/{name}`; a test
compares the two. A row says what of its goal is not shown.

- `python benchmarks/reliability.py` runs all rows (an hour on two cores), `--only R7` one. Trials
  serve SmolLM2-135M on loopback; where a row names tests, it runs these.
- `python benchmarks/soak.py` is the hour of R14; `make chaos` what kills, stops and starves;
  `make test-slow` the long forms.
- `python benchmarks/covered.py --out benchmarks/results/covered-DATE.json` and `python
  benchmarks/mutants.py --out benchmarks/results/mutants-DATE.json` measure what R25 shows.
- What each boundary promises, and the published holes that it is tested against, is on the page
  about [security](security.md).

Machine: {machine}. Times of trials are of a machine that did other work too.

| | what is done | to hold | reached | shown by | date |
|---|---|---|---|---|---|
"""


def newest() -> Path:
    """Return the latest file of results."""
    return max(RESULTS.glob("reliability-*.json"))


def render(found: dict[str, Any], name: str) -> str:
    """Return the page."""
    rows = [_row(key, goal, found["rows"].get(key)) for key, goal in GOALS.items()]
    return HEAD.format(name=name, machine=found["machine"]) + "\n".join(rows) + "\n"


def _row(key: str, goal: Goal, row: dict[str, Any] | None) -> str:
    command = f"benchmarks/reliability.py --only {key}"
    if row is not None:
        reached = row["figure"] if row["holds"] else f"**Not reached.** {row['figure']}"
        command, date = row["command"], row["date"]
    elif goal.tests and not goal.trial:
        reached, date = f"in `make test` and `make test-slow`: {goal.claim}", ""
        command = f"pytest {goal.tests}"
    else:
        reached, date = "not run", ""
    if goal.missing:
        reached += f". Not shown: {goal.missing}"
    shown = f"`{command}`" if goal.trial or goal.tests else ""
    cells = (key, goal.stimulus, goal.goal, reached, shown, date)
    return f"| {' | '.join(cell.replace('|', ' or ') for cell in cells)} |"


def write() -> None:
    """Make the page again."""
    path = newest()
    text = render(json.loads(path.read_text(encoding="utf-8")), path.name)
    PAGE.write_text(text, encoding="utf-8")
