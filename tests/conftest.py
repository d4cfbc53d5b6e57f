"""Gives each test process its share of the cores, and chooses Triton's interpreter without a GPU.

Both come before torch is imported: it counts the cores once, and imports Triton by itself. And
spares each HTTP client, the tests' and their processes', the system's certificates.
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
# httpx reads all certificates for every client that it makes: 25 ms of a core, where a request to
# loopback takes one. Tests speak to loopback; in a folder it looks for one only when asked.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)


def pytest_configure(config: pytest.Config) -> None:
    """Give a drawn example as long as a test: on a busy machine 200 ms show nothing of ours."""
    if config.pluginmanager.hasplugin("hypothesispytest"):
        from hypothesis import settings

        settings.register_profile("patient", deadline=None)
        settings.load_profile("patient")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put quick files last, and have tests run again, up to twice, when they fail.

    Files are handed out in this order: a long one at the end would keep one process busy while the
    others have nothing left. The report counts what runs again as ``rerun``: other work on the
    machine can make a test miss its deadline, and some draw their numbers; one that fails three
    times in a row is wrong. Without ``pytest-rerunfailures`` they run once.
    """
    root = Path(__file__).parent
    items.sort(key=lambda item: item.path.is_relative_to(root / "unit"))
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        if item.path.is_relative_to(root):
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))
