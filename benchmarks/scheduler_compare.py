"""Whether the host's share of a step has become dearer: `scheduler_step.py` of two trees, in turns.

    python benchmarks/scheduler_compare.py /tmp/old . [--rounds 10] [-- --rows 256]

Each tree runs its own `benchmarks/scheduler_step.py` on its own `core/`. Both run in turns and the
smallest median of each row counts, so that other work on the machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

Medians = dict[str, float]


def run(tree: Path, arguments: list[str]) -> Medians:
    """Run the benchmark of ``tree`` once; returns the median of each row in microseconds."""
    done = subprocess.run(
        [sys.executable, str(tree / "benchmarks" / "scheduler_step.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(tree / "core")},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads((done.stdout or "").splitlines()[-1])
    return {name: row["median_us"] for name, row in report.items() if isinstance(row, dict)}


def least(known: Medians, more: Medians) -> Medians:
    return {name: min(figure, known.get(name, figure)) for name, figure in more.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("arguments", nargs="*", help="after --: what both benchmarks are given")
    options = parser.parse_args()
    old: Medians = {}
    new: Medians = {}
    for _ in range(options.rounds):
        old = least(old, run(options.old.resolve(), options.arguments))
        new = least(new, run(options.new.resolve(), options.arguments))
    print(f"{'us a step':24} {'old':>8} {'new':>8}   ratio")
    for name, figure in new.items():
        if name in old:
            print(f"{name:24} {old[name]:8.0f} {figure:8.0f}   {figure / old[name]:5.2f}")


if __name__ == "__main__":
    main()
