"""The page of figures, made from the goals and from what was measured."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
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

Machine: {machine}, where a row names no other. Times of trials are of a machine that did other work
too; a row with a load says how many processes were ready to run on it, on average of 15 minutes.

| | what is done | to hold | reached | shown by | date |
|---|---|---|---|---|---|
"""


def newest() -> Path:
    """Return the latest file of results."""
    return max(RESULTS.glob("reliability-*.json"))


def render(found: dict[str, Any], name: str) -> str:
    """Return the page."""
    machine = found["machine"]
    rows = [_row(key, goal, found["rows"].get(key), machine) for key, goal in GOALS.items()]
    head = HEAD.format(name=name, machine=machine)
    return head + "\n".join(rows) + "\n" + render_states()


def load_states() -> ModuleType:
    """Return the module with the declared table of a request's states, which a test exercises."""
    place = ROOT / "tests" / "engine" / "request_states.py"
    spec = importlib.util.spec_from_file_location("request_states", place)
    assert spec is not None, f"{place} cannot be loaded"
    assert spec.loader is not None, f"{place} cannot be loaded"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def render_states() -> str:
    """Return the table of R26."""
    declared = load_states()
    events = list(declared.EVENTS)
    count = len(declared.STATES) * len(events)
    lines = [
        "\n## What becomes of a request\n",
        f"The {count} pairs of R26: {len(declared.STATES)} states of a request, and {len(events)}"
        " things that may happen in each. `tests/engine/test_request_states.py` brings about every"
        " pair, on the front door and an engine without a model, and fails where one is left out."
        " The request beside it goes on unharmed, unless all are meant.\n",
        *(f"- *{name}*: {what}." for name, what in declared.EVENTS.items()),
        "",
        *(f"- **{name}**: {what}." for name, what in declared.OUTCOMES.items()),
        "",
        f"| state | | {' | '.join(events)} |",
        f"|---|---|{'---|' * len(events)}",
    ]
    for state, what in declared.STATES.items():
        cells = [declared.TABLE[state][event] for event in events]
        lines.append(f"| {state} | {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _row(key: str, goal: Goal, row: dict[str, Any] | None, machine: str) -> str:
    command = f"benchmarks/reliability.py --only {key}"
    if row is not None:
        reached = row["figure"] if row["holds"] else f"**Not reached.** {row['figure']}"
        if row.get("machine", machine) != machine:
            reached += f". On {row['machine']}"
        if "load" in row:
            reached += f", load {row['load']}"
        command, date = row["command"], row["date"]
    elif goal.tests:
        reached, date = f"in `make test` and `make test-slow`: {goal.claim}", ""
        if goal.trial:
            reached += f". Not run: the trial, `{command}`"
        command = f"pytest {goal.tests}"
    else:
        reached, date = "not run", ""
    if row is not None and row.get("what", goal.stimulus) != goal.stimulus:
        reached += f". Not shown: the row as it is now; this was of {row['what']}"
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
