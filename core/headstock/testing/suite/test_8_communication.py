"""Two ranks of the backend, a process and a device each, add, gather and broadcast rightly.

A backend without ``headstock_communication`` has the host's network tested on its device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from headstock.config.environment import child_environment
from headstock.testing.ranks import CHECKS
from headstock.testing.target import Target

SIZE = 2
LIMIT_S = 900
EVERY = ("identity", *CHECKS, "close")

Wrongs = dict[str, list[str]]


@pytest.fixture(scope="module")
def wrongs(target: Target, tmp_path_factory: pytest.TempPathFactory) -> list[Wrongs]:
    """Return what each rank found wrong, by check."""
    devices = target.chosen.probe.devices
    if len(devices) < SIZE and not all(device.is_host for device in devices):
        pytest.skip(f"{target.chosen.name} has {len(devices)} device here; {SIZE} are needed")
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "headstock.testing.ranks", target.chosen.name]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(SIZE), str(folder), *target.options],
            env=child_environment(PYTHONPATH=path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(SIZE)
    ]
    try:
        return [_read(rank, process) for rank, process in enumerate(processes)]
    finally:
        for process in processes:
            process.kill()


def _read(rank: int, process: subprocess.Popen[str]) -> Wrongs:
    out, error = process.communicate(timeout=LIMIT_S)
    found = [json.loads(line) for line in out.splitlines() if line.startswith('{"check"')]
    wrongs: Wrongs = {each["check"]: each["wrong"] for each in found}
    if process.returncode:
        reason = (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        wrongs |= {name: [reason] for name in EVERY if name not in wrongs}
    return wrongs


@pytest.mark.parametrize("check", EVERY)
def test_ranks_agree_on(check: str, wrongs: list[Wrongs]) -> None:
    texts = [f"rank {rank}: {text}" for rank, each in enumerate(wrongs) for text in each[check]]
    assert not texts, "\n".join(texts[:10])
