"""Runs tests of the kit on mutants: ``python -m headstock_mutants.run FILE NAME…``.

One process for all, since most of the time goes into starting one. FILE gets, for each name, the
outcome of its tests, as JSON.
"""

from __future__ import annotations

import json
import sys
from importlib import resources
from pathlib import Path

import pytest

from headstock_mutants.every import MUTATIONS
from headstock_mutants.mutation import Mutation


class Outcomes:
    """Keeps each test's outcome: one that failed is never passed again by its teardown."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.of[report.nodeid.rsplit("/", 1)[-1]] = report.outcome


def node(test: str) -> str:
    """Return where pytest finds ``3_ops::it_equals_its_reference[linear-float32]``."""
    file, name = test.split("::")
    return f"{resources.files('headstock.testing.suite') / f'test_{file}.py'}::test_{name}"


def outcomes(mutation: Mutation, tests: tuple[str, ...]) -> dict[str, str]:
    """Return the outcome of each of ``tests`` on a mutant."""
    seen = Outcomes()
    options = ("-q", "-p", "no:cacheprovider", "--no-header", "--tb=short")
    options += ("--headstock-backend=mutant",)
    options += (f"--headstock-plugin=headstock_mutants.made:{mutation.name}",)
    path = list(sys.path)
    pytest.main([*options, *map(node, tests)], plugins=[seen])
    sys.path[:] = path  # the pretended installation was put on it
    return seen.of


def main(argv: list[str]) -> None:
    """Run the tests of each mutation that is named, on it and on the right plugin."""
    file, *names = argv
    right = Mutation(name="unchanged", tests=())
    found: dict[str, dict[str, str]] = {}
    if names[:1] == ["unchanged"]:
        names = names[1:]
        tests = sorted({test for name in names for test in MUTATIONS[name].tests})
        found["unchanged"] = outcomes(right, tuple(tests))
    for name in names:
        found[name] = outcomes(MUTATIONS[name], MUTATIONS[name].tests)
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
