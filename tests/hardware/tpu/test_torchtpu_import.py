"""torch-tpu as it is published, on a machine without a TPU. `make torchtpu-test` fetches it.

Each test runs in a process of its own: torch-tpu ends the process where it finds no libtpu.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from headstock.config.environment import TORCH_AUTOLOAD, child_environment


@pytest.fixture(scope="module")
def torch_tpu() -> Path:
    """Return where torch-tpu is installed; skip where it is not."""
    spec = find_spec("torch_tpu")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("torch-tpu is not installed: make torchtpu-test")
    return Path(next(iter(spec.submodule_search_locations)))


def run(torch_tpu: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would, with torch-tpu installed and PyTorch free to load it."""
    environment = child_environment(PYTHONPATH=str(torch_tpu.parent))
    environment.pop(TORCH_AUTOLOAD, None)
    return subprocess.run(
        [sys.executable, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_it_is_imported_and_says_that_it_sees_no_chip(torch_tpu: Path) -> None:
    code = (
        "from headstock.config.environment import hold_back_torch_backends as h; h()\n"
        "from headstock_tpu.torchtpu import TorchTpuRuntime\n"
        "TorchTpuRuntime(0)\n"
    )
    done = run(torch_tpu, "-c", code)
    assert done.returncode == 1
    assert "UnsupportedError: torch-tpu is installed and sees no TPU." in done.stderr


def test_backends_says_that_there_is_no_chip(torch_tpu: Path) -> None:
    done = run(torch_tpu, "-m", "headstock.cli", "backends")
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.split()[:1] == ["tpu"])
    assert "no TPU on the PCI bus" in line


def test_serving_on_it_is_refused_before_it_is_imported(torch_tpu: Path) -> None:
    words = ("-m", "headstock.cli", "doctor", "--backend", "tpu")
    done = run(torch_tpu, *words)
    assert "no TPU on the PCI bus" in done.stdout + done.stderr
    assert "tcmalloc" not in done.stdout + done.stderr
