"""What the backend asks of torch-npu is what torch-npu has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from headstock.config.environment import child_environment

ROOT = Path(__file__).parents[3]
CALLS = (
    "norms",
    "activation",
    "attention",
    "int8_pages",
    "windows",
    "latents",
    "rotation",
    "products",
    "experts",
    "routing",
    "draws",
    "device",
    "group",
)


@pytest.mark.parametrize("name", CALLS)
def test_calls_fit_the_schemas_and_shapes(outcomes: dict[str, str], name: str) -> None:
    assert not outcomes[name], outcomes[name]


def test_no_call_is_left_out(outcomes: dict[str, str]) -> None:
    assert set(outcomes) == set(CALLS)


def test_the_recorded_schemas_are_those_of_torch_npu(cann: Path) -> None:
    """Those by which the kernels for the CPU are declared."""
    environment = child_environment(
        LD_LIBRARY_PATH=str(cann), TORCH_DEVICE_BACKEND_AUTOLOAD="0", PYTHONPATH=":".join(sys.path)
    )
    code = "import record_schemas as r; print(r.recorded(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=ROOT / "tests/npu",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    kept = (ROOT / "tests/npu/headstock_npu_on_cpu/schemas.txt").read_text()
    assert done.stdout.endswith(kept), "run python tests/npu/record_schemas.py"


class TestWithoutCann:
    """torch-npu is installed, and CANN is not: nobody else may notice."""

    def run(self, torch_npu: Path, *words: str) -> subprocess.CompletedProcess[str]:
        environment = child_environment(PYTHONPATH=str(torch_npu.parent))
        for name in ("TORCH_DEVICE_BACKEND_AUTOLOAD", "LD_LIBRARY_PATH"):
            environment.pop(name, None)
        return subprocess.run(
            [sys.executable, *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    def test_torch_alone_fails(self, torch_npu: Path) -> None:
        assert "torch_npu" in self.run(torch_npu, "-c", "import torch").stderr

    def test_an_engine_can_be_imported(self, torch_npu: Path) -> None:
        done = self.run(torch_npu, "-c", "from headstock import Engine; import torch")
        assert done.returncode == 0, done.stderr

    def test_backends_lists_the_others_as_they_are(self, torch_npu: Path) -> None:
        done = self.run(torch_npu, "-m", "headstock.cli", "backends")
        assert done.returncode == 0, done.stderr
        assert "no /dev/davinci" in done.stdout

    def test_opening_it_says_what_is_missing(self, torch_npu: Path) -> None:
        code = (
            "from headstock import Engine; from headstock_ascend.open import import_npu as i; i()"
        )
        done = self.run(torch_npu, "-c", code)
        assert "ConfigError: torch-npu cannot be imported: libhccl.so" in done.stderr
        assert "source set_env.sh" in done.stderr
