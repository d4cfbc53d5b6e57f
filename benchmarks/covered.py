"""R25: the lines and branches of core that the tests of `make test` run, room by room.

    python benchmarks/covered.py [--jobs 2] [--data FOLDER] [--out FILE.json] [FOLDER ...]

Needs the package ``coverage``. What tests start counts too, such as engines, helpers and commands.
Each folder of tests is run by itself; with ``--data`` what it ran is kept and added to by later
calls, so that the folders may be measured one at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "core/headstock"
FOLDERS = [
    f"tests/{name}"
    for name in (
        "unit", "engine", "server", "structured", "security", "runner", "frontend", "vision",
        "models", "kernels", "contract", "e2e",
    )
]  # fmt: skip
CORE_ROOMS = ("cache", "engine", "scheduler", "server")
"""Rooms whose share is held to :data:`BAR`."""
BAR = 85.0
"""Lines of each of :data:`CORE_ROOMS` that the tests run. Percent."""
QUICK = "not slow"
LIMIT_S = 1800
"""A test that takes longer hangs: measured ones take several times as long as others. Seconds."""
SETTINGS = """[run]
branch = true
parallel = true
source = {source}
patch = subprocess
    _exit
sigterm = true
data_file = {data}
disable_warnings = no-data-collected, module-not-measured, couldnt-parse
"""
"""``subprocess`` measures what is started, ``_exit`` and ``sigterm`` what is ended."""
_KINDS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def run_folder(folder: str, settings: Path, jobs: int) -> bool:
    """Run the quick tests of a folder in ``jobs`` processes; return whether all passed."""
    tests = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", QUICK, folder]
    tests += ["--timeout", str(LIMIT_S), "-n", str(jobs if jobs > 1 else 0)]
    tests += ["--dist", "loadfile", "--no-loadscope-reorder"]
    run = ["-m", "coverage", "run", f"--rcfile={settings}", *tests]
    return subprocess.run([sys.executable, *run], cwd=ROOT, check=False).returncode == 0


def report_of(settings: Path, data: Path) -> dict[str, Any]:
    """Return what all runs covered together; their data stays."""
    rcfile = f"--rcfile={settings}"
    combined, written = data / "combined", data / "report.json"
    parts = [str(path) for path in data.glob("part.*")]
    for words in (
        ["combine", rcfile, "-q", "--keep", f"--data-file={combined}", *parts],
        ["json", rcfile, "-q", "-i", f"--data-file={combined}", "-o", str(written)],
    ):
        subprocess.run([sys.executable, "-m", "coverage", *words], cwd=ROOT, check=True)
    return json.loads(written.read_text(encoding="utf-8"))


def shares_of(counts: Counter[str]) -> dict[str, Any]:
    """Return counts as shares of lines and of branches. Percent."""
    lines, branches = counts["num_statements"], counts["num_branches"]
    return {
        "lines": lines,
        "branches": branches,
        "covered_lines": round(100 * counts["covered_lines"] / max(1, lines), 1),
        "covered_branches": round(100 * counts["covered_branches"] / max(1, branches), 1),
    }


def by_room(report: dict[str, Any]) -> dict[str, Counter[str]]:
    """Return what was counted in each room of core; of files that are in none, under ""."""
    rooms: dict[str, Counter[str]] = {}
    for path, found in report["files"].items():
        parts = Path(path).relative_to(SOURCE).parts
        room = rooms.setdefault(parts[0] if len(parts) > 1 else "", Counter())
        room.update({kind: found["summary"][kind] for kind in _KINDS})
    return dict(sorted(rooms.items()))


def measured(folders: list[str], data: Path, jobs: int) -> dict[str, Any]:
    """Run the quick tests of ``folders`` and return what was covered, by them and before."""
    data.mkdir(parents=True, exist_ok=True)
    settings = data / "settings.ini"
    text = SETTINGS.format(source=ROOT / SOURCE, data=data / "part")
    settings.write_text(text, encoding="utf-8")
    known = data / "folders.json"
    passed: dict[str, bool] = json.loads(known.read_text()) if known.is_file() else {}
    for folder in folders:
        passed[folder] = run_folder(folder, settings, jobs)
        known.write_text(json.dumps(passed), encoding="utf-8")
    rooms = by_room(report_of(settings, data))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "folders": sorted(passed),
        "all_passed": all(passed.values()),
        **shares_of(sum(rooms.values(), Counter())),
        "rooms": {room: shares_of(counts) for room, counts in rooms.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="What the quick tests run of core.")
    parser.add_argument("folders", nargs="*", default=FOLDERS)
    parser.add_argument("--jobs", type=int, default=1, help="test processes at once")
    parser.add_argument("--data", type=Path, help="where what was run is kept, and added to")
    parser.add_argument("--out", type=Path, help="a file for the result, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) if options.data is None else options.data.resolve()
        found = measured(options.folders, data, options.jobs)
    text = json.dumps(found, indent=1) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    low = [room for room in CORE_ROOMS if found["rooms"][room]["covered_lines"] < BAR]
    if low:
        print(f"under {BAR:.0f} % of lines: {', '.join(low)}")
    return 1 if low else 0


if __name__ == "__main__":
    raise SystemExit(main())
