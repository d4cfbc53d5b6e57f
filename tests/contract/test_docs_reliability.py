"""The page of reliability is what its script makes of the newest results, and names what exists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
SHOW = """
import json, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from reliability_parts import page
from reliability_parts.goals import GOALS
path = Path(sys.argv[1]) if sys.argv[1:] else page.newest()
print(json.dumps({
    "pairs": len(page.load_states().STATES) * len(page.load_states().EVENTS),
    "claim": GOALS["R26"].claim,
    "page": page.render(json.loads(path.read_text(encoding="utf-8")), path.name),
    "goals": {key: [goal.tests, goal.trial, goal.missing] for key, goal in GOALS.items()},
}))
"""


def test_the_page_is_made_of_the_newest_results_and_all_that_it_names_exists() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, cwd=ROOT, check=True
    )
    made = json.loads(done.stdout)
    assert PAGE.read_text(encoding="utf-8") == made["page"], (
        "write it again: python benchmarks/reliability.py --page"
    )
    assert list(made["goals"]) == [f"R{number}" for number in range(1, 29)]
    assert made["claim"].startswith(f"{made['pairs']} of {made['pairs']} pairs")
    for key, (tests, trial, missing) in made["goals"].items():
        assert tests or trial or missing, f"{key} shows nothing and does not say so"
        for path in tests.split():
            assert (ROOT / path).exists(), f"{key} names {path}"
        if trial and trial != "soak":
            module, _, name = trial.partition(".")
            source = ROOT / "benchmarks" / "reliability_parts" / f"{module}.py"
            assert f"def {name}(" in source.read_text(encoding="utf-8"), f"{key} names {trial}"


def test_rows_of_another_run_are_added_with_their_machine(tmp_path: Path) -> None:
    row = {"figure": "7 of 7", "holds": True, "command": "x", "date": "2026-01-02"}
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    ours.write_text(json.dumps({"machine": "one", "rows": {"R7": row}}), encoding="utf-8")
    theirs.write_text(json.dumps({"machine": "two", "rows": {"R2": row}}), encoding="utf-8")
    command = [sys.executable, "benchmarks/reliability.py", "--add", str(theirs)]
    subprocess.run([*command, "--out", str(ours)], cwd=ROOT, check=True)
    done = subprocess.run(
        [sys.executable, "-c", SHOW, str(ours)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    page = json.loads(done.stdout)["page"]
    lines = {line.split(" ")[1]: line for line in page.splitlines() if line.startswith("| R")}
    assert "| 7 of 7. On two |" in lines["R2"]
    assert "| 7 of 7 |" in lines["R7"]
    assert lines["R2"].endswith("| 2026-01-02 |")
