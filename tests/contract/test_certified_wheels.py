"""Wheels of strangers' packages, installed into an environment of their own, pass the kit.

Those in ``frozen/`` were built for hook API 2.0 and 2.1 and are never built again: that is the
promise. The others are built from ``examples/`` as they stand.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FROZEN = {
    "2.0": Path(__file__).parent / "frozen" / "headstock_minimal-0.0.1-py3-none-any.whl",
    "2.1": Path(__file__).parent / "frozen" / "headstock_minimal-0.1.0-py3-none-any.whl",
}
"""Wheels by the hook API that they were built for."""
OFFLINE = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
QUICK = "1_loading or (rms_norm and (equals or accepts or 4_req or 9_rules)) or 2_device"


class Environment:
    """An environment that sees this one's packages, and has wheels of its own.

    Args:
        folder: Empty.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        (site,) = folder.glob("lib/python*/site-packages")
        own = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *sys.path}
        places = sorted(
            str(Path(place).absolute()) for place in own if place and Path(place).is_dir()
        )
        hidden = {str(ROOT / "examples" / "backend_full"), str(ROOT / "tests" / "toy")}
        (site / "base.pth").write_text("".join(f"{p}\n" for p in places if p not in hidden))

    def install(self, wheel: Path) -> None:
        """Install a wheel, and nothing that it depends on."""
        _run(sys.executable, "-m", "pip", "--python", self.python, "install", *OFFLINE, wheel)

    def kit(self, *options: str, suite: str = "headstock.testing.suite") -> dict[str, Any]:
        """Run a kit; return its report."""
        report = self.python.parent / "report.json"
        words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", self.python.parent)
        _run(self.python, *words, "--pyargs", suite, *options, f"--headstock-report={report}")
        return json.loads(report.read_text())


def build(example: str, folder: Path) -> Path:
    """Build the wheel of an example, from a copy of its source."""
    shutil.copytree(ROOT / "examples" / example, folder / example)
    offline = (*OFFLINE, "--no-build-isolation", "-w", folder)
    _run(sys.executable, "-m", "pip", "wheel", *offline, folder / example)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.parametrize("api", FROZEN)
def test_a_wheel_built_for_an_earlier_hook_api_is_loaded_and_right(
    api: str, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(FROZEN[api])
    code = "import headstock_minimal; print(*headstock_minimal.HOOK_API, sep='.')"
    assert _run(environment.python, "-c", code).strip() == api
    _is_right(environment.kit("--headstock-backend=minimal", "-k", QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("api", FROZEN)
def test_a_wheel_built_for_an_earlier_hook_api_is_certified(api: str, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(FROZEN[api])
    _is_certified(environment.kit("--headstock-backend=minimal"), ["rms_norm"])


@pytest.mark.parametrize(
    ("example", "backend"),
    [
        pytest.param("backend_minimal", "minimal", marks=pytest.mark.slow),  # as the frozen are
        ("backend_full", "acme"),
    ],
)
def test_an_example_is_loaded_and_right_from_its_wheel(
    example: str, backend: str, tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(build(example, tmp_path))
    _is_right(environment.kit(f"--headstock-backend={backend}", "-k", QUICK))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "backend", "ops"),
    [
        ("backend_minimal", "minimal", ["rms_norm"]),
        ("backend_full", "acme", ["attention", "linear", "rms_norm"]),
    ],
)
def test_an_example_is_certified_from_its_wheel(
    example: str, backend: str, ops: Sequence[str], tmp_path: Path
) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(build(example, tmp_path))
    _is_certified(environment.kit(f"--headstock-backend={backend}"), ops)


def test_the_example_model_is_certified_from_its_wheel(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(build("model_package", tmp_path))
    option = "--headstock-model=headstock_example_model.cases"
    report = environment.kit(option, suite="headstock.testing.models")
    assert report["counts"] == {"passed": 14}
    code = (
        "from headstock.plugins.models import installed_models as i;"
        "print(i().load('TinyForCausalLM').__module__)"
    )
    shown = _run(environment.python, "-c", code)
    assert shown.strip() == "headstock_example_model.tiny"


def test_the_example_step_is_certified_from_its_wheel(tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(build("step_provider", tmp_path))
    report = environment.kit("--headstock-backend=reference", "-k", "7_engine and llama")
    assert report["counts"] == {"passed": 9}
    code = (
        "import json, pathlib, sys, tempfile\n"
        "import headstock\n"
        "from headstock.testing.suite.test_7_engine import CONFIGS\n"
        "options = dict(load_format='dummy', skip_tokenizer_init=True, backend='reference')\n"
        "for name in sys.argv[1:]:\n"
        "    folder = tempfile.mkdtemp()\n"
        "    pathlib.Path(folder, 'config.json').write_text(json.dumps(CONFIGS[name]))\n"
        "    with headstock.Engine(model=folder, **options) as engine:\n"
        "        print(engine.started.model_facts['whole steps'])\n"
    )
    shown, other = _run(environment.python, "-c", code, "llama", "qwen3").splitlines()
    assert shown.startswith("example_step for one decoding row; the layers for 64 decoding rows")
    assert "(more than 32 rows), prompts (a row has more than one token)" in shown
    assert "the layers (example_step: architecture Qwen3ForCausalLM not in" in other


def _is_right(report: dict[str, Any]) -> None:
    """Assert that nothing failed of the quick tests, of which most were run."""
    assert report["dist"].startswith("headstock-")
    assert report["counts"]["passed"] >= 15
    assert not {"failed", "error"} & set(report["counts"])


def _is_certified(report: dict[str, Any], ops: Sequence[str]) -> None:
    """Assert that nothing failed, and that each of ``ops`` was tried."""
    assert not {"failed", "error"} & set(report["counts"]), report["counts"]
    tried = {r["op"] for r in report["results"] if r.get("num_cases") and r["outcome"] == "passed"}
    assert set(ops) <= tried
    engine = [r for r in report["results"] if "test_7_engine" in r["test"]]
    assert engine
    assert {r["outcome"] for r in engine} == {"passed"}


def _run(*words: object) -> str:
    done = subprocess.run(
        list(map(str, words)),
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    return done.stdout
