"""The kit certifies a right backend, and none of a hundred wrong ones.

Each mutant is ``examples/backend_full`` with one thing changed, and the reference under its own
name for the ops that the example leaves to it. The ordinary tests try a
dozen; `make test-slow` all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from headstock_mutants.every import MUTATIONS

ROOT = Path(__file__).parents[2]
PATHS = (ROOT / "examples" / "backend_full", ROOT / "tests" / "contract" / "mutants")
QUICK = [name for name, mutation in MUTATIONS.items() if mutation.is_quick]
REST = [name for name, mutation in MUTATIONS.items() if not mutation.is_quick]
AT_ONCE = 8
CHUNKS = [REST[begin : begin + AT_ONCE] for begin in range(0, len(REST), AT_ONCE)]
FEWEST = 60
"""Mutations that there must be, at least."""

Outcomes = dict[str, dict[str, str]]


def test_there_are_enough_mutations_to_mean_something() -> None:
    assert len(MUTATIONS) >= FEWEST
    assert len(QUICK) >= 10


def test_the_kit_catches_the_mutations_that_once_passed_it(tmp_path: Path) -> None:
    _check(_run(tmp_path, QUICK), QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("names", CHUNKS, ids=[chunk[0] for chunk in CHUNKS])
def test_the_kit_catches_every_mutation(names: list[str], tmp_path: Path) -> None:
    _check(_run(tmp_path, names), names)


@pytest.mark.slow
def test_the_kit_certifies_what_is_not_mutated(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    suite = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "headstock.testing.suite")
    options = ("--headstock-backend=mutant", "--headstock-plugin=headstock_mutants.made:unchanged")
    done = _python(*suite, *options, f"--headstock-report={report}")
    assert done.returncode == 0, done.stdout[-8000:]
    counts = json.loads(report.read_text())["counts"]
    assert counts["passed"] > 400


def _check(found: Outcomes, names: list[str]) -> None:
    """Assert that tests which pass on the right plugin fail on each mutant."""
    right = found.pop("unchanged")
    assert set(right.values()) == {"passed"}, right
    assert list(found) == names
    certified = [name for name, tests in found.items() if "failed" not in tests.values()]
    assert not certified, f"the kit lets these pass: {certified}"


def _run(tmp_path: Path, names: list[str]) -> Outcomes:
    file = tmp_path / "outcomes.json"
    done = _python("-m", "headstock_mutants.run", str(file), "unchanged", *names)
    assert file.exists(), done.stdout[-8000:] + done.stderr[-8000:]
    return json.loads(file.read_text())


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, PATHS))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
    )
