"""What `headstock backends` and the doctor say of machines: without accelerators, and with each.

Plugins are probed in processes of their own, so the machine is put there, too: a ``sitecustomize``
has each in-tree probe judge made-up files, packages and drivers by its own rules.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MACHINE = """
import sys
from pathlib import Path
import headstock_ascend, headstock_cuda, headstock_rocm, headstock_tpu
from headstock.plugins.installed import TorchBuild
from headstock_cuda.nvml import Driver, Gpu

root, kind = Path({root!r}), {kind!r}
of = lambda name: sys.modules[f"headstock_{{name}}.probe"]

def write(path, text=""):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)

packages, cann, torch = {{}}, {{}}, TorchBuild("2.13.0+cpu")
if kind.startswith("tpu"):
    write("sys/bus/pci/devices/0/vendor", "0x1ae0")
    write("sys/bus/pci/devices/0/device", "0x0063")
    write("dev/vfio/0")
    packages = {{"torch": "2.9.1", "torch-xla": "2.9.0"}} if kind == "tpu" else {{}}
if kind.startswith("ascend"):
    write("dev/davinci0")
    write("cann/libascendcl.so")
    packages = {{"torch": "2.13.0", "torch-npu": "2.13.0"}}
    cann = {{"LD_LIBRARY_PATH": str(root / "cann")}} if kind == "ascend" else {{}}
if kind.startswith("rocm"):
    nodes = "sys/class/kfd/kfd/topology/nodes"
    write("dev/kfd")
    write(f"{{nodes}}/1/properties", "gfx_target_version 90402\\n")
    if kind == "rocm":
        torch = TorchBuild("2.11.0+rocm7.2", {{"hip": "7.2.26015"}})
gpus = ()
if kind.startswith("cuda"):
    gpus = (Gpu(index=0, uuid="GPU-a", name="H100", capability=(9, 0), memory_bytes=80 << 30),)
    torch = TorchBuild("2.13.0+cu130", {{"cuda": "13.0"}})
driver = Driver("580.82", (13, 0) if kind == "cuda" else (12, 0), gpus)

headstock_tpu.probe = lambda judge=of("tpu").probe: judge(root, packages.get)
headstock_ascend.probe = lambda: of("ascend").judge(root, packages.get, cann)
headstock_rocm.probe = lambda: of("rocm").judge(root, torch, {{}})
headstock_cuda.probe = lambda: (
    of("cuda").judge(driver, torch, {{}}) if gpus else of("cuda").without_library(root)
)
"""
WHOLE = {
    "cuda": "H100 (sm_90, 80 GiB)",
    "rocm": "gfx942",
    "tpu": "TPU v5e",
    "ascend": "davinci0 (ascend)",
}
"""Machines that have all that a backend needs, and what is shown of the device."""
NOTHING = {
    "cuda": "no NVIDIA driver",
    "rocm": "no /dev/kfd",
    "tpu": "no TPU on the PCI bus",
    "ascend": "no /dev/davinci*",
}
LACKING = {
    "cuda-old-driver": ("BROKEN", "driver 580.82 supports CUDA 12.0", "Update the driver"),
    "rocm-plain-torch": ("absent", "is built without ROCm", "build for ROCm"),
    "tpu-no-runtime": ("absent", "neither torch-xla nor torch-tpu", "headstock[tpu]"),
    "ascend-no-cann": ("BROKEN", "no libascendcl.so", "set_env.sh"),
}
"""Machines that lack something: the state, what is said, and the remedy."""


@pytest.fixture
def on(tmp_path: Path) -> Any:
    """Return a function: runs a command on a machine of some kind."""

    def run(kind: str, *words: str) -> subprocess.CompletedProcess[str]:
        source = MACHINE.format(root=str(tmp_path / "root"), kind=kind)
        (tmp_path / "sitecustomize.py").write_text(source)
        path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH", ""))))
        return subprocess.run(
            [sys.executable, "-m", "headstock.cli", *words],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def states(printed: str) -> dict[str, tuple[str, str]]:
    """Return state and text of each backend's line, with the remedy below it."""
    found: dict[str, tuple[str, str]] = {}
    name = ""
    for line in printed.splitlines():
        words = line.split(maxsplit=6)
        if len(words) == 7 and words[1] == "headstock":
            name = words[0]
            found[name] = (words[4], words[6])
        elif line.startswith(" ") and name in found and "fix: " in line:
            found[name] = (found[name][0], found[name][1] + line.strip())
    return found


def test_without_hardware_every_accelerator_is_absent_and_the_host_serves(on: Any) -> None:
    done = on("nothing", "backends")
    assert done.returncode == 0, done.stderr
    found = states(done.stdout)
    assert {name: found[name] for name in NOTHING} == {
        name: ("absent", reason) for name, reason in NOTHING.items()
    }
    assert done.stdout.splitlines()[-1] in ("-> would use: xeon", "-> would use: reference")


@pytest.mark.parametrize("kind", WHOLE)
def test_a_machine_with_all_of_it_is_served_by_its_backend(on: Any, kind: str) -> None:
    done = on(kind, "backends")
    found = states(done.stdout)
    assert found[kind][0] == "available"
    assert WHOLE[kind] in found[kind][1]
    assert {found[other] for other in set(NOTHING) - {kind}} == {
        ("absent", NOTHING[other]) for other in set(NOTHING) - {kind}
    }
    assert done.stdout.splitlines()[-1] == f"-> would use: {kind}"


@pytest.mark.parametrize("kind", LACKING)
def test_a_machine_that_lacks_something_says_what_and_how_it_is_mended(on: Any, kind: str) -> None:
    name, (state, reason, remedy) = kind.split("-")[0], LACKING[kind]
    done = on(kind, "backends")
    found_state, text = states(done.stdout)[name]
    assert found_state == state
    assert reason in text
    assert remedy in text
    ends = "would not start" if state == "BROKEN" else "would use"
    assert f"-> {ends}: " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nothing", *WHOLE])
def test_the_doctor_tells_the_same_and_that_a_device_does_not_open(on: Any, kind: str) -> None:
    done = on(kind, "doctor", "--json")
    report = json.loads(done.stdout)
    probes = {p["record"]["name"]: p["probe"] for p in report["plugins"] if p["probe"]}
    for name, reason in NOTHING.items():
        is_here = name == kind
        assert probes[name]["status"] == ("available" if is_here else "absent")
        assert is_here or probes[name]["reason"] == reason
    if kind == "nothing":
        assert (done.returncode, report["trouble"]) == (0, "")
        assert report["chosen"] in ("xeon", "reference")
    else:  # the made-up device cannot be opened, which the doctor finds out
        assert report["chosen"] == kind
        assert done.returncode == 2
        assert report["trouble"]
