"""R25: the lines and branches of core that the quick tests run.

    python benchmarks/covered.py [--out FILE.json] [FOLDER ...]

Needs the package ``coverage``. Without folders these are tests/unit and tests/engine, which need no
model; ``tests`` is all that `make test` runs. Only what runs in pytest's own process counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ["tests/unit", "tests/engine"]
QUICK = "not slow and not chaos"


def totals_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return the shares of a report of ``coverage json``."""
    totals = report["totals"]
    lines, branches = totals["num_statements"], totals["num_branches"]
    return {
        "lines": lines,
        "branches": branches,
        "covered_lines": round(100 * totals["covered_lines"] / max(1, lines), 1),
        "covered_branches": round(100 * totals["covered_branches"] / max(1, branches), 1),
    }


def measured(folders: list[str], folder: Path) -> dict[str, Any]:
    """Run the quick tests of ``folders`` and return what they covered."""
    environment = {**os.environ, "COVERAGE_FILE": str(folder / "data")}
    tests = ["-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", QUICK, *folders]
    run = ["-m", "coverage", "run", "--branch", "--source=core/headstock", *tests]
    done = subprocess.run([sys.executable, *run], cwd=ROOT, env=environment, check=False)
    report = folder / "report.json"
    tell = ["-m", "coverage", "json", "-q", "-o", str(report)]
    subprocess.run([sys.executable, *tell], cwd=ROOT, env=environment, check=True)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "folders": folders,
        "all_passed": done.returncode == 0,
        **totals_of(json.loads(report.read_text(encoding="utf-8"))),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="What the quick tests run of core.")
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    parser.add_argument("--out", type=Path, help="a file for the result, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options.folders, Path(folder))
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
