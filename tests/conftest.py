"""Gives each test process its share of the cores, and chooses Triton's interpreter without a GPU.

Both come before torch is imported: it counts the cores once, and imports Triton by itself.
"""

import os
from pathlib import Path

import pytest


def _take_share() -> None:
    """Keep to this worker's cores, so that the thread pools of two workers do not contend."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker or not hasattr(os, "sched_setaffinity"):
        return
    index, count = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[index::count] or cores)


_take_share()
if not any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have tests run again, up to twice, when they fail; the report counts it as ``rerun``.

    Other work on the machine can make one miss its deadline, and some draw their numbers: one that
    fails three times in a row is wrong. Without ``pytest-rerunfailures`` they run once.
    """
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    root = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(root):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))
