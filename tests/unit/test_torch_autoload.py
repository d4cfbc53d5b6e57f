"""A package that PyTorch would load by itself, and that is broken, takes nobody down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headstock.config.environment import TORCH_AUTOLOAD, child_environment


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return one in which ``import torch`` fails, by the entry point of a broken package."""
    (tmp_path / "torch_broken.py").write_text("raise ImportError('libascendcl.so: no such file')\n")
    record = tmp_path / "torch_broken-1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_broken\nVersion: 1\n")
    (record / "entry_points.txt").write_text("[torch.backends]\nbroken = torch_broken:load\n")
    found = child_environment(PYTHONPATH=str(tmp_path))
    found.pop(TORCH_AUTOLOAD, None)
    return found


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_package_does_break_torch(environment: dict[str, str]) -> None:
    done = run(environment, "-c", "import torch")
    assert done.returncode != 0
    assert "Failed to load the backend extension" in done.stderr


def test_an_engine_can_be_imported_beside_it(environment: dict[str, str]) -> None:
    done = run(environment, "-c", "from headstock import Engine; import torch")
    assert done.returncode == 0, done.stderr


def test_the_commands_work_beside_it(environment: dict[str, str]) -> None:
    for words in (["backends"], ["doctor", "--backend", "reference"]):
        done = run(environment, "-m", "headstock.cli", *words)
        assert "reference" in done.stdout, done.stderr
        assert "Failed to load the backend extension" not in done.stdout + done.stderr


def test_the_operator_may_want_it(environment: dict[str, str]) -> None:
    done = run(environment | {TORCH_AUTOLOAD: "1"}, "-c", "from headstock import Engine")
    assert "Failed to load the backend extension" in done.stderr


SERVE = """
import json, sys
from headstock.assemble.local import run_greedy
from headstock.testing.suite.test_7_engine import CONFIGS
print(json.dumps(run_greedy(CONFIGS["llama"], [[5, 6, 7]], 4, backend=sys.argv[1])))
"""


@pytest.mark.parametrize("backend", ["reference", "xeon"])
def test_other_backends_serve_the_same_tokens_beside_it(
    environment: dict[str, str], backend: str
) -> None:
    beside = run(environment, "-c", SERVE, backend)
    assert beside.returncode == 0, beside.stderr
    alone = run(child_environment(), "-c", SERVE, "reference")
    assert len(json.loads(beside.stdout)[0]) == 4
    assert beside.stdout == alone.stdout
