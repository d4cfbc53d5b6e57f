"""A generated backend, installed from its own wheel, passes the conformance kit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstock.cli import main
from headstock.cli.new_backend import write_backend
from headstock.errors import ConfigError

NAME = "made_up"
QUICK = "1_loading or 2_device or silu_and_mul or (7_engine and together and llama)"
"""What of the kit is tried each time: its own op, and a model that is served."""


def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the generated package's wheel was installed into."""
    root = tmp_path_factory.mktemp("new_backend")
    write_backend(NAME, root / "package")
    offline = ("--no-deps", "--no-index", "--disable-pip-version-check", "--quiet")
    run("pip", "wheel", *offline, "--no-build-isolation", "-w", root / "wheels", root / "package")
    (wheel,) = (root / "wheels").glob("*.whl")
    run("pip", "install", *offline, "--target", root / "site", wheel)
    return root / "site"


@pytest.mark.parametrize("part", [QUICK, pytest.param("", marks=pytest.mark.slow)])
def test_the_generated_backend_passes_the_kit(installed: Path, tmp_path: Path, part: str) -> None:
    report = tmp_path / "report.json"
    run(
        *("pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "--pyargs"),
        *("headstock.testing.suite", f"--headstock-backend={NAME}"),
        *("-k", part),
        f"--headstock-report={report}",
        PYTHONPATH=str(installed),
    )
    results = json.loads(report.read_text())["results"]
    assert {result["outcome"] for result in results} <= {"passed", "skipped"}
    passed = [result["test"] for result in results if result["outcome"] == "passed"]
    assert any("silu_and_mul" in test for test in passed)
    assert any("7_engine" in test for test in passed)


def test_the_doctor_says_that_the_generated_backend_computes_its_op(installed: Path) -> None:
    done = run(
        *("headstock.cli", "doctor", "--json", "--backend", NAME, "--disable-plugin", "xeon"),
        PYTHONPATH=str(installed),
    )
    providers = {op["op"]: op["provider"] for op in json.loads(done.stdout)["ops"]}
    assert providers["silu_and_mul"] == NAME
    assert providers["rms_norm"] == "reference"


def test_the_generated_code_has_no_lint(tmp_path: Path) -> None:
    write_backend(NAME, tmp_path / "package")
    run("ruff", "check", "--isolated", "--select", "E,F,UP,B", tmp_path, "--line-length", 100)
    run("ruff", "format", "--isolated", "--check", "--line-length", 100, tmp_path)


@pytest.mark.parametrize("name", ["Foo", "9lives", "a-b", "class", "", "x" * 40])
def test_a_name_that_cannot_be_a_package_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name a Python package"):
        write_backend(name, tmp_path)


def test_the_name_of_an_installed_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="installed already, by headstock"):
        write_backend("reference", tmp_path)


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        write_backend(NAME, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_command_prints_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-backend", NAME, "--dir", str(tmp_path / "new")]) == 0
    assert "pip install -e" in capsys.readouterr().out
    assert (tmp_path / "new" / "headstock_made_up" / "__init__.py").is_file()
