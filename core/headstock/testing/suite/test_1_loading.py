"""The plugin loads, and its probe answers quickly, twice alike, without touching a vendor."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from headstock.plugins.loader import Plugins, State
from headstock.plugins.probe import Status

LIGHT = frozenset({"headstock", "pluggy", "msgspec", "psutil", "packaging", "platformdirs"})
"""Packages beside the standard library and its own that a probe may import."""
PROBE_LIMIT_S = 2.0

SCRIPT = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from headstock.testing import probing
print(json.dumps(probing.observe(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def observed(backend: str, plugins: Plugins) -> dict[str, Any]:
    """Return what the probe did in a fresh interpreter."""
    del plugins  # found first, so that --headstock-plugin is on the path
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend, json.dumps(sys.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"the probe ended its process:\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


def test_the_plugin_loads(plugins: Plugins, backend: str) -> None:
    records = [r for r in plugins.backends if r.name == backend and r.state is not State.DISABLED]
    assert records, f"no backend {backend!r} is installed"
    assert records[0].state is State.LOADED, f"{records[0].reason}. {records[0].remedy}"


def test_the_probe_says_available_or_why_not(observed: dict[str, Any]) -> None:
    assert observed["reason"], "the probe gives no reason"
    if observed["status"] == Status.BROKEN.value:
        assert observed["remedy"], "a BROKEN probe must say what to do"
    if observed["status"] == Status.AVAILABLE.value:
        assert observed["num_devices"], "an AVAILABLE probe must list its devices"


def test_the_probe_imports_no_vendor_library(observed: dict[str, Any]) -> None:
    heavy = set(observed["imported"]) - LIGHT - {observed["own_package"]}
    assert not heavy, f"loading and probing imported {sorted(heavy)}: import them when opened"


def test_the_probe_is_quick(observed: dict[str, Any]) -> None:
    assert observed["seconds"] < PROBE_LIMIT_S, f"loading and probing took {observed['seconds']} s"


def test_the_probe_answers_twice_alike(observed: dict[str, Any]) -> None:
    assert observed["is_repeatable"], "a second probe in the same process answers otherwise"
