"""Every instruction set of this machine: the kit passes on it, and the answers are the same."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import headstock
from headstock.checkpoint.pull import cached_path, find
from headstock_xeon import native
from tests.kernels.xeon.conftest import SETS

ROOT = Path(__file__).parents[3]
QUICK = "3_ops or 5_attention or neighbours"
"""What of the kit meets the instructions; `make kit` has all of it, on the newest set here, and the
default model goes through the engine on every set below."""
PROMPTS = ["The capital of France is", "def fibonacci(n):", "1, 2, 3, 4, 5,"]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(pytest.param(name, QUICK, id=f"{name}-in-part") for name in SETS if name == "avx2"),
        *(pytest.param(name, "", id=name, marks=pytest.mark.slow) for name in SETS),
    ],
)
def test_the_kit_passes(library, name: str, part: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.kernels.xeon.limited"]
    command += ["--xeon-set", name, "--headstock-backend=xeon", "-k", part]
    command += ["--pyargs", "headstock.testing.suite"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " failed" not in done.stdout


def test_the_default_model_answers_the_same(library, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached_path(find("smollm2"))
    if not path.is_file():
        pytest.skip("smollm2 was never pulled: `headstock pull smollm2`")
    monkeypatch.setattr(native, "MEASURED", 0)  # the newest kernels are to be tried
    answers: dict[str, list[list[int]]] = {}
    for name, features in SETS.items():
        monkeypatch.setattr(
            native, "load", lambda features=features: replace(library, features=features)
        )
        with headstock.Engine(
            model=str(path), backend="xeon", cache_tokens=2048, max_model_len=256
        ) as engine:
            results = engine.generate(
                prompt=PROMPTS,
                sampling_params={"temperature": 0, "max_new_tokens": 32, "ignore_eos": True},
            )
        answers[name] = [result["output_ids"] for result in results]
    assert len({str(ids) for ids in answers.values()}) == 1, answers
