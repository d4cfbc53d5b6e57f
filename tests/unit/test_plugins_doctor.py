"""The doctor, beside plugins that hang, print, exit and crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headstock.assemble.vetting import leave_out_unfit
from headstock.cli import main
from headstock.config import EngineSettings, settings_from_call
from headstock.errors import PluginError
from headstock.plugins import doctor
from headstock.plugins.doctor import Examination, Examined, Report
from headstock.plugins.examine import Loaded, Probed
from headstock.plugins.hooks import Finding
from headstock.plugins.loader import BACKENDS, PluginRecord, State
from headstock.plugins.probe import Probe, Status

HEAD = """
from headstock.plugins.hooks import Finding, hookimpl
from headstock.plugins.probe import Probe, Status
HOOK_API = (2, 0)
"""
PROBE = """
@hookimpl
def headstock_probe():
    return Probe(status=Status.ABSENT, reason="no such thing")
"""


@pytest.fixture
def install(tmp_path: Path) -> Any:
    """Write a distribution with one backend; return the environment that sees it."""

    def write(source: str, name: str = "odd") -> dict[str, str]:
        (tmp_path / f"{name}_backend.py").write_text(source)
        info = tmp_path / f"{name}_dist-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}-dist\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{BACKENDS}]\n{name} = {name}_backend\n")
        return {**os.environ, "PYTHONPATH": str(tmp_path)}

    return write


def examine(environment: dict[str, str], limit_s: float = 30) -> tuple[list[Any], str]:
    return Examination(["plugin", "odd", BACKENDS], environment).finish(limit_s)


def test_a_healthy_plugin_reports_record_and_probe(install: Any) -> None:
    lines, trouble = examine(install(HEAD + PROBE))
    loaded, probed = lines
    assert isinstance(loaded, Loaded)
    assert loaded.record.state is State.LOADED
    assert isinstance(probed, Probed)
    assert probed.probe.status is Status.ABSENT
    assert trouble == ""


def test_a_plugin_that_prints_disturbs_nothing(install: Any) -> None:
    lines, trouble = examine(install("import os\nprint('{}')\nos.write(1, b'{}')" + HEAD + PROBE))
    assert len(lines) == 2
    assert trouble == ""


def test_a_plugin_that_hangs_is_given_up(install: Any) -> None:
    lines, trouble = examine(install("import time\ntime.sleep(60)"), limit_s=1.5)
    assert (lines, trouble) == ([], "it did not answer within 2 s")


def test_a_plugin_that_kills_its_process_is_reported(install: Any) -> None:
    lines, trouble = examine(install("import os\nos._exit(7)"))
    assert lines == []
    assert "code 7" in trouble


def test_what_was_found_before_a_crash_is_kept(install: Any) -> None:
    crash = "\n@hookimpl\ndef headstock_doctor():\n    import os\n    os._exit(9)\n"
    lines, trouble = examine(install(HEAD + PROBE + crash))
    assert len(lines) == 2
    assert "code 9" in trouble


def test_a_plugin_adds_its_own_lines(install: Any) -> None:
    own = "\n@hookimpl\ndef headstock_doctor():\n"
    own += "    yield Finding(subject='cable', is_ok=False, text='out', remedy='plug it in')\n"
    lines, _ = examine(install(HEAD + PROBE + own))
    assert lines[-1].finding.remedy == "plug it in"


def test_a_broken_plugin_makes_the_doctor_exit_with_2_and_the_rest_is_there(install: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "headstock.cli", "doctor", "--json", "--backend", "reference"],
        env=install("import no_such_library"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    report = json.loads(done.stdout)
    states = {p["record"]["name"]: p["record"]["state"] for p in report["plugins"]}
    assert done.returncode == report["exit_code"] == 2
    assert (states["odd"], states["reference"]) == ("failed", "loaded")
    assert {op["provider"] for op in report["ops"]} == {"reference"}


def report(*plugins: Examined, chosen: str | None = "toy", trouble: str = "") -> Report:
    return Report(
        headstock="0",
        python="3",
        torch=None,
        plugins=list(plugins),
        chosen=chosen,
        ops=[],
        trouble=trouble,
    )


def examined(status: Status, **more: Any) -> Examined:
    record = PluginRecord(
        name="toy", group=BACKENDS, dist="headstock-toy", version="1", state=State.LOADED
    )
    return Examined(record=record, probe=Probe(status=status, reason="because"), **more)


BAD = Finding(subject="cable", is_ok=False, text="out", remedy="plug it in")


@pytest.mark.parametrize(
    ("found", "code"),
    [
        (report(examined(Status.AVAILABLE), examined(Status.ABSENT)), 0),
        (report(examined(Status.ABSENT), chosen=None), 1),
        (report(examined(Status.BROKEN), chosen=None), 1),
        (report(examined(Status.AVAILABLE), examined(Status.BROKEN)), 2),
        (report(examined(Status.AVAILABLE, trouble="it hung")), 2),
        (report(examined(Status.AVAILABLE, findings=[BAD])), 2),
        (report(examined(Status.AVAILABLE), trouble="no device"), 2),
    ],
)
def test_the_exit_code_tells_well_from_unusable_from_broken(found: Report, code: int) -> None:
    assert found.exit_code == code


def test_an_unknown_backend_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--backend", "referenc"]) == 2
    assert "Did you mean 'reference'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        (HEAD + "\n@hookimpl\ndef headstock_probe():\n    import os\n    os._exit(3)\n", "code 3"),
    ],
)
def test_a_plugin_that_crashes_natively_is_listed_by_backends(
    install: Any, source: str, word: str
) -> None:
    done = backends(install(source))
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("odd"))
    assert "BROKEN" in line
    assert word in line
    assert "--disable-plugin odd" in done.stdout
    assert "-> would use: " in done.stdout


def test_a_plugin_is_probed_once_and_given_up_after_a_limit(
    install: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "marks"
    hang = f"    open({str(marks)!r}, 'a').write('x')\n    import time\n    time.sleep(600)\n"
    environment = install(HEAD + "\n@hookimpl\ndef headstock_probe():\n" + hang)
    monkeypatch.syspath_prepend(str(tmp_path))
    begin_s = time.monotonic()
    doctor.probe_each(lambda **more: environment | more, disabled=["odd"])
    limit_s = round(4.0 + 3 * (time.monotonic() - begin_s))  # what does not hang has to end in it
    monkeypatch.setattr(doctor, "PLUGIN_LIMIT_S", limit_s)
    found = {e.record.name: e for e in doctor.probe_each(lambda **more: {**environment, **more})}
    assert found["odd"].trouble == f"it did not answer within {limit_s} s"
    assert marks.read_text() == "x"
    assert found["reference"].is_available


def backends(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headstock.cli", "backends"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SEGFAULT = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
HANG = HEAD + "\n@hookimpl\ndef headstock_probe():\n    import time\n    time.sleep(60)\n"


@pytest.mark.parametrize(
    ("source", "limit_s", "word"),
    [
        (SEGFAULT, 60.0, "SIGSEGV"),
        (HANG, 2.0, "did not answer within 2 s"),  # the others end as late as the machine is busy
        (HEAD + PROBE, 60.0, None),
    ],
)
def test_a_start_leaves_out_plugins_that_crash_or_hang_and_names_them(
    install: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    source: str,
    limit_s: float,
    word: Any,
) -> None:
    monkeypatch.setenv("PYTHONPATH", install(source)["PYTHONPATH"])
    monkeypatch.syspath_prepend(str(tmp_path))
    loaded = settings_from_call(EngineSettings, {"disable_plugin": ["another"]})
    disabled = leave_out_unfit(loaded, limit_s).settings.device.disable_plugin
    assert disabled == ["another", *(["odd-dist:odd"] if word else [])]
    assert (word or "") in caplog.text
    assert ("Plugin 'odd' (odd-dist 1.0) cannot be loaded" in caplog.text) == bool(word)
    other = settings_from_call(EngineSettings, {"backend": "reference"})
    assert leave_out_unfit(other) is other
    if word == "SIGSEGV":
        asked_for = settings_from_call(EngineSettings, {"backend": "odd"})
        with pytest.raises(PluginError, match="SIGSEGV"):
            leave_out_unfit(asked_for)


def test_serve_names_a_plugin_that_crashes_natively_and_starts_without_it(
    install: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "none"}))
    flags = ["--load-format", "dummy", "--skip-tokenizer-init", "--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "headstock.cli", "serve", str(tmp_path), *flags],
        env=install(SEGFAULT),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Plugin 'odd' (odd-dist 1.0) cannot be loaded: its process was ended by SIGSEGV" in (
        done.stderr
    )
    assert "died" not in done.stderr  # the engine came as far as the model, which is none
    assert "docs/adding-a-model.md" in done.stderr
