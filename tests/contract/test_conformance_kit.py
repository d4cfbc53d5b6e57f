"""The kit passes a backend that overrides one op, and names what is wrong with a wrong one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BACKEND = """
from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

HOOK_API = (2, 0)

@hookimpl
def headstock_probe():
    device = ProbedDevice(index=0, name="host", arch="any")
    return Probe(status=Status.AVAILABLE, reason="for a test", score=1, devices=(device,))

@hookimpl
def headstock_device(num_threads):
    from headstock.plugins.host import HostDevice
    return HostDevice(num_threads=num_threads)

@hookimpl
def headstock_register_ops(registry):
    from headstock.ops.base import Requires, Sizes
    from headstock.ops.norm import rms_norm
    registry.add(rms_norm, "thrown", norm, requires={requires})

def norm(x_TD, weight_D, *, eps):
    import torch
    x32 = x_TD.float()
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + {eps})
    return (x32 * scale * weight_D.float()).to(x_TD.dtype)
"""


def test_a_backend_that_overrides_one_op_passes_and_claims_no_other(tmp_path: Path) -> None:
    done, report = _certify(tmp_path, "-k", "norm or linear", eps="eps", requires="Requires()")
    assert done.returncode == 0, done.stdout
    assert report["counts"].get("failed", 0) == 0
    norms = [r for r in report["results"] if r.get("op") == "rms_norm" and r.get("num_cases")]
    assert {r["dtype"] for r in norms} == {"float32", "bfloat16", "float16"}
    linear = [r for r in report["results"] if r.get("op") == "linear"]
    assert linear
    assert {(r["outcome"], r["reason"]) for r in linear} == {("skipped", "not claimed")}


def test_a_wrong_op_fails_and_the_report_names_op_shape_and_error(tmp_path: Path) -> None:
    done, report = _certify(tmp_path, "-k", "rms_norm", eps="0.1", requires="Requires()")
    assert done.returncode == 1
    findings = [text for r in report["results"] for text in r.get("findings", [])]
    assert findings
    assert findings[0].startswith("rms_norm by thrown, float32, 1 tokens of 64 (size 64): ")
    assert "worst at" in findings[0]
    assert "relative" in findings[0]
    assert findings[0] in done.stdout


def test_a_requirement_that_is_never_asked_fails(tmp_path: Path) -> None:
    misspelt = 'Requires(sizes={"hidden": Sizes(multiple_of=8)})'
    done, _ = _certify(tmp_path, "-k", "requirements and rms_norm", eps="eps", requires=misspelt)
    assert done.returncode == 1
    assert "requires ['hidden'], which are never asked" in done.stdout


def test_a_backend_that_imports_its_vendor_to_probe_fails(tmp_path: Path) -> None:
    done, _ = _certify(
        tmp_path, "-k", "vendor", eps="eps", requires="Requires()", top="import torch\n"
    )
    assert done.returncode == 1
    assert "loading and probing imported" in done.stdout


def test_a_backend_that_is_not_here_is_skipped_with_its_reason(tmp_path: Path) -> None:
    done, report = _certify(
        tmp_path,
        eps="eps",
        requires="Requires()",
        replace=("status=Status.AVAILABLE", "status=Status.ABSENT"),
    )
    assert done.returncode == 0, done.stdout
    reasons = {r["reason"] for r in report["results"] if r["outcome"] == "skipped"}
    assert reasons == {"thrown is absent: for a test"}


def test_a_report_of_tests_in_several_processes_is_refused(tmp_path: Path) -> None:
    done, report = _certify(tmp_path, "-n", "2", eps="eps", requires="Requires()")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--headstock-report={tmp_path / 'report.json'}: the report is" in done.stderr
    assert "(--dist=load). Add -n 0." in done.stderr
    assert not report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"), [("toy", "headstock_toy"), ("functional", "headstock_functional")]
)
def test_a_toy_passes(name: str, module: str, tmp_path: Path) -> None:
    toy = Path(__file__).parents[1] / "toy"
    done, _ = _run(tmp_path, toy, name, module)
    assert done.returncode == 0, done.stdout


def _certify(
    tmp_path: Path,
    *options: str,
    eps: str,
    requires: str,
    top: str = "",
    replace: tuple[str, str] = ("", ""),
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    text = BACKEND.replace("{eps}", eps).replace("{requires}", requires)
    (tmp_path / "thrown.py").write_text(top + text.replace(*replace))
    return _run(tmp_path, tmp_path, "thrown", "thrown", *options)


def _run(
    tmp_path: Path, path: Path, backend: str, module: str, *options: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "pytest", "--pyargs", "headstock.testing.suite", "-q"]
    command += ["-p", "no:cacheprovider", f"--headstock-report={report}"]
    command += [f"--headstock-backend={backend}", f"--headstock-plugin={module}", *options]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done, json.loads(report.read_text()) if report.exists() else {}
