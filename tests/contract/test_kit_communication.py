"""The kit catches collectives that are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

BACKEND = """
from headstock.parallel.host_group import HostGroup
from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

HOOK_API = (2, 0)

@hookimpl
def headstock_probe():
    device = ProbedDevice(index=0, name="host", arch="any", is_host=True)
    return Probe(status=Status.AVAILABLE, reason="for a test", score=1, devices=(device,))

@hookimpl
def headstock_device(num_threads):
    from headstock.plugins.host import HostDevice
    return HostDevice(num_threads=num_threads)

class Group(HostGroup):
{body}

@hookimpl
def headstock_communication(group):
    return Group(group)
"""
RIGHT = "    pass"
MEAN = "    def all_reduce(self, x):\n        return super().all_reduce(x) / self.size"
REVERSED = (
    "    def all_gather(self, x_TC):\n"
    "        import torch\n"
    "        return torch.cat(super().all_gather(x_TC).chunk(self.size, -1)[::-1], -1)"
)
LAST = (
    "    def broadcast(self, x):\n"
    "        import torch\n"
    "        return super().all_gather(x).chunk(self.size, -1)[-1]"
)
OWN_ORDER = (
    "    def all_reduce(self, x):\n"
    "        noise = 1 + 1e-7 * self.rank if x.dtype.itemsize == 4 else 1\n"
    "        return super().all_reduce(x) * noise"
)
NARROW = "    def all_reduce(self, x):\n        return super().all_reduce(x[:, :512].contiguous())"


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (RIGHT, set()),
        (MEAN, {"sums", "rounds"}),
        pytest.param(REVERSED, {"gathers"}, marks=pytest.mark.slow),
        pytest.param(LAST, {"broadcasts"}, marks=pytest.mark.slow),
        pytest.param(OWN_ORDER, {"sums"}, marks=pytest.mark.slow),
        pytest.param(NARROW, {"sums", "rounds"}, marks=pytest.mark.slow),
    ],
)
def test_a_group_is_certified_only_when_it_is_right(body, names, tmp_path):
    (tmp_path / "wrong_group.py").write_text(BACKEND.replace("{body}", body))
    report = tmp_path / "report.json"
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "8_communication"]
    command += ["--pyargs", "headstock.testing.suite", "--headstock-backend=wrong"]
    command += ["--headstock-plugin=wrong_group", f"--headstock-report={report}"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *command], env=environment, capture_output=True, check=False)
    results = json.loads(report.read_text())["results"]
    failed = {r["test"].split("[")[1].rstrip("]") for r in results if r["outcome"] == "failed"}
    assert len(results) == 7
    assert names <= failed
    assert bool(failed) == bool(names)
