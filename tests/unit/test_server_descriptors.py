"""Open files run out without harm: they are counted before they do."""

import logging
import os
import resource
import subprocess
import sys

import pytest

from headstock.server import descriptors

pytestmark = pytest.mark.chaos


def run_limited(limit, program):
    """Run ``program`` with at most ``limit`` open files."""
    begin = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
    return subprocess.run(
        [sys.executable, "-c", begin + program], capture_output=True, text=True, check=False
    )


def test_require_finds_out_and_leaves_nothing_open():
    before = len(os.listdir("/proc/self/fd"))
    descriptors.require(5)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2**16:
        with pytest.raises(OSError, match="Too many"):
            descriptors.require(soft)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("limit", [16, 40])
def test_a_server_that_may_open_next_to_nothing_says_so_and_ends(limit):
    done = run_limited(limit, "from headstock.cli import main; raise SystemExit(main(['serve']))")
    assert done.returncode == 2
    assert f"may open {limit} files" in done.stderr
    assert "ulimit -n" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_low_limit_is_warned_of(caplog, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        descriptors.prepare(4096)
    assert "room for 160 connections, not 4096" in caplog.text
    caplog.clear()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8192, 8192))
    descriptors.prepare(4096)
    assert not caplog.text


def test_the_limit_is_raised_as_far_as_it_may_be(monkeypatch):
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 3000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    descriptors.prepare(4096)
    assert set_to == [(3000, 3000)]
