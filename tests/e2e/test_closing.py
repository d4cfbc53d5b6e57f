"""Whatever a start opened is closed: groups before devices, on every rank, failed starts too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headstock.plugins.loader import BACKENDS, PLUGINS
from headstock.plugins.models import MODELS
from tests.e2e.tiny import CONFIG

BACKEND = """
import os
from pathlib import Path
from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

HOOK_API = (2, 0)
RANK = [0]

def mark(what):
    with open(os.environ["MARKS"], "a") as marks:
        marks.write(f"{what} {RANK[0]}\\n")

@hookimpl
def headstock_probe():
    device = ProbedDevice(index=0, name="host", arch="any", is_host=True)
    return Probe(status=Status.AVAILABLE, reason="for a test", score=1, devices=(device,))

@hookimpl
def headstock_device(num_threads):
    from headstock.plugins.host import HostDevice

    class Device(HostDevice):
        def close(self):
            mark("device")
            super().close()

    return Device(num_threads=num_threads)

@hookimpl
def headstock_communication(group):
    from headstock.parallel.host_group import HostGroup

    class Group(HostGroup):
        def close(self):
            mark("group")
            super().close()

    RANK[0] = group.rank
    return Group(group)
"""
FAILING = """
from headstock.plugins.hooks import hookimpl

HOOK_API = (2, 0)

@hookimpl
def headstock_register_ops(registry):
    from headstock.ops.norm import rms_norm
    registry.add(rms_norm, "torn", rms_norm.reference)
    raise ValueError("the driver is torn")
"""
RUN = """
import sys, headstock
with headstock.Engine(model=sys.argv[1], backend="marked", load_format="dummy",
                      skip_tokenizer_init=True, max_model_len=64, cache_tokens=256,
                      tp_size=int(sys.argv[2]), op=sys.argv[3:]) as engine:
    result = engine.generate(input_ids=[1, 2], sampling_params={"max_new_tokens": 2})
    print(engine.started.model_facts)
"""
Run = Callable[..., "tuple[subprocess.CompletedProcess[str], list[str]]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a function that runs an engine on a backend that writes down what is closed."""

    def install(name: str, source: str, group: str) -> None:
        (tmp_path / f"{name}_plugin.py").write_text(source)
        info = tmp_path / f"{name}_dist-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Name: {name}-dist\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {name}_plugin\n")

    def start(
        *ops: str, size: int = 1, with_failing: bool = False, **changes: object
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        install("marked", BACKEND, BACKENDS)
        if with_failing:
            install("torn", FAILING, PLUGINS)
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(CONFIG | changes))
        marks = tmp_path / "marks"
        marks.touch()
        paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(model), str(size), *ops],
            env={**os.environ, "PYTHONPATH": paths, "MARKS": str(marks), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        return done, marks.read_text().splitlines()

    return start


def of_rank(marks: list[str], rank: int) -> list[str]:
    return [mark.split()[0] for mark in marks if mark.endswith(str(rank))]


def test_every_rank_leaves_its_group_and_then_closes_its_device(run: Run) -> None:
    done, marks = run(size=2)
    assert done.returncode == 0, done.stderr
    assert of_rank(marks, 0) == ["group", "device"]
    assert of_rank(marks, 1) == ["group", "device"]


def test_a_failed_start_closes_what_it_opened(run: Run) -> None:
    done, marks = run(size=2, hidden_act="gelu")
    assert "hidden_act" in done.stderr
    assert of_rank(marks, 0) == ["group", "device"]
    assert of_rank(marks, 1) == ["group", "device"]


def test_a_failed_start_of_one_rank_closes_its_device(run: Run) -> None:
    done, marks = run(hidden_act="gelu")
    assert "hidden_act" in done.stderr
    assert of_rank(marks, 0) == ["device"]


def test_a_plugin_whose_ops_fail_is_passed_over_with_its_reason(run: Run) -> None:
    done, _ = run(with_failing=True)
    assert done.returncode == 0, done.stderr
    assert "plugin torn (torn-dist) is passed over" in done.stdout
    assert "the driver is torn" in done.stdout


def test_a_plugin_that_was_asked_for_stops_the_start_with_its_reason(run: Run) -> None:
    done, _ = run("rms_norm=torn", with_failing=True)
    assert done.returncode != 0
    assert "--op rms_norm=torn: no such provider" in done.stderr
    assert "the driver is torn" in done.stderr


def test_an_unexpected_error_s_traceback_is_in_the_log(tmp_path: Path) -> None:
    source = "class Odd:\n    def __init__(self, ctx, config):\n        raise NotImplementedError\n"
    (tmp_path / "odd_model.py").write_text(source)
    info = tmp_path / "odd_dist-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: odd-dist\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{MODELS}]\nOddForCausalLM = odd_model:Odd\n")
    config = CONFIG | {"architectures": ["OddForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--load-format", "dummy", "--skip-tokenizer-init", "--port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "headstock.cli", "serve", str(tmp_path), *flags],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "odd_model.py" in done.stderr
    assert "NotImplementedError" in done.stderr.splitlines()[-2]
