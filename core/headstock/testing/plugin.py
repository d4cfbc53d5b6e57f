"""The conformance kit's pytest options and report. Loaded by every pytest run: imports little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SUITES = ("headstock/testing/suite", "headstock/testing/models")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ``--headstock-*`` options."""
    group = parser.getgroup("headstock", "conformance kits for Headstock's backends and models")
    group.addoption("--headstock-backend", metavar="NAME", help="backend to certify")
    group.addoption(
        "--headstock-plugin",
        metavar="MODULE",
        help="the backend is this module, not installed yet: find it as if it were",
    )
    group.addoption(
        "--headstock-device", metavar="INDEX", type=int, default=0, help="which of its devices"
    )
    group.addoption(
        "--headstock-option",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="option of the backend, as --backend-option; may be given several times",
    )
    group.addoption(
        "--headstock-model",
        metavar="MODULE",
        help="module with a list CASES of headstock.testing.oracle.case.ModelCase, to compare with"
        " transformers; or MODULE:LIST",
    )
    group.addoption(
        "--headstock-report",
        metavar="FILE",
        help="write the outcome here, as JSON; write it with =, else pytest takes FILE for tests",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect outcomes when a report was asked for.

    Raises:
        pytest.UsageError: Other processes run the tests: they know the device, this one does not.
    """
    path = config.getoption("--headstock-report")
    if not path:
        return
    dist = config.getoption("dist", "no")  # of pytest-xdist, which may not be installed
    if dist != "no":
        raise pytest.UsageError(
            f"--headstock-report={path}: the report is written where the tests run in one process,"
            f" and pytest-xdist spreads them (--dist={dist}). Add -n 0."
        )
    config.pluginmanager.register(_Report(Path(path), config), "headstock-report")


class _Report:
    """Outcomes of the suite's tests, written as JSON when the session ends."""

    def __init__(self, path: Path, config: pytest.Config) -> None:
        self._path = path
        self._config = config
        self._own: set[str] = set()
        self._results: list[dict[str, Any]] = []
        self.facts: dict[str, Any] = {}
        """What the suite knows of the backend; its fixtures fill it in."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        paths = {item.nodeid: item.path.as_posix() for item in session.items}
        self._own = {name for name, path in paths.items() if any(s in path for s in SUITES)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.nodeid not in self._own:
            return
        if report.when != "call" and report.passed:
            return
        self._results.append(
            {
                "test": report.nodeid.rsplit("/", 1)[-1],
                "outcome": "error" if report.failed and report.when != "call" else report.outcome,
                "seconds": round(report.duration, 3),
                "reason": _reason(report),
                **dict(report.user_properties),
            }
        )

    def pytest_sessionfinish(self) -> None:
        counts: dict[str, int] = {}
        for result in self._results:
            counts[result["outcome"]] = counts.get(result["outcome"], 0) + 1
        report = {
            "backend": self._config.getoption("--headstock-backend"),
            "model": self._config.getoption("--headstock-model"),
            **self.facts,
            "counts": counts,
            "results": self._results,
        }
        self._path.write_text(json.dumps(report, indent=1) + "\n")


def _reason(report: pytest.TestReport) -> str:
    """Return why a test was skipped or what failed; empty when it passed."""
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return crash.message if crash is not None else ""
