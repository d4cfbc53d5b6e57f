"""A rank is killed, or the device faults, under load: streams go on, nothing comes twice."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.served import Served, served, wait_for
from tests.e2e.test_chaos import RUNNING, check, under_load
from tests.e2e.test_tensor_parallel import ranks_of
from tests.e2e.tiny import DUMMY

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
FLAGS = [*DUMMY, "--cache-tokens", "32768", "--max-running-requests", str(RUNNING)]
PLUGIN = """
import os
from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

HOOK_API = (2, 0)
FLAG = os.path.join(os.path.dirname(__file__), "fault")

@hookimpl
def headstock_probe():
    device = ProbedDevice(index=0, name="frail", arch="frail", memory_bytes=64 << 30, is_host=True)
    return Probe(status=Status.AVAILABLE, reason="for a test", score=0, devices=(device,))

@hookimpl
def headstock_device():
    from headstock.plugins.host import HostDevice

    class Frail(HostDevice):
        name = "frail"
        is_lost = False

        def fetch(self, source, into):
            if self.is_lost or os.path.exists(FLAG):
                if not self.is_lost:
                    os.unlink(FLAG)
                self.is_lost = True
                raise RuntimeError("frail error: an illegal memory access was encountered")
            return super().fetch(source, into)

        def synchronize(self):
            if self.is_lost:
                raise RuntimeError("frail error: an illegal memory access was encountered")

    return Frail()
"""


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a backend whose device faults as soon as a file is there; return that file."""
    (tmp_path / "headstock_frail.py").write_text(PLUGIN)
    info = tmp_path / "headstock_frail-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: headstock-frail\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[headstock.backends]\nfrail = headstock_frail\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "fault"


@pytest.fixture(scope="module")
def ranked(folder: str) -> Iterator[Served]:
    with served(folder, *FLAGS, "--tp-size", "2") as server:
        yield server


def trial(server: Served, disturb: Any) -> None:
    undisturbed = [told.ids for told in asyncio.run(under_load(server))]
    check(asyncio.run(under_load(server, disturb)), undisturbed)
    state = server.idle_state()
    assert state["free_pages"] + state["cached_pages"] == state["total_pages"]


def test_a_killed_rank_under_full_load_loses_nothing(ranked: Served) -> None:
    seen: dict[str, Any] = {}

    def kill() -> None:
        (rank,) = ranks_of(ranked)
        pid = ranked.engine_pid
        begun_s = time.monotonic()
        os.kill(rank.pid, signal.SIGKILL)
        wait_for(lambda: not ranked.is_ready(), 10, "a server that is not ready")
        seen["noticed_s"] = time.monotonic() - begun_s
        wait_for(ranked.is_ready, 120, "readiness")
        assert ranked.engine_pid != pid

    trial(ranked, kill)
    assert seen["noticed_s"] < 3  # 1 s on a machine with nothing else to do


def test_a_device_that_faults_under_full_load_loses_nothing(folder: str, faults: Path) -> None:
    flags = ["frail" if flag == "reference" else flag for flag in FLAGS]
    with served(folder, *flags) as server:

        def fault() -> None:
            pid = server.engine_pid
            faults.touch()
            wait_for(lambda: not server.is_ready(), 20, "a server that is not ready")
            wait_for(server.is_ready, 120, "readiness")
            assert server.engine_pid != pid

        trial(server, fault)
        assert "The device frail failed at step" in server.log
