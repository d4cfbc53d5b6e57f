"""The backend's hooks: with and without native kernels."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

import headstock_xeon
from headstock.errors import ConfigError
from headstock.ops.base import OpRegistry
from headstock.ops.norm import rms_norm
from headstock.plugins.host import HostDevice
from headstock_xeon import build, doctor
from headstock_xeon.device import XeonDevice


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library be missing, since no compiler was found."""
    monkeypatch.setattr(build, "LIBRARY", tmp_path / "_native.so")
    monkeypatch.setattr(build, "REASON", tmp_path / "_native_missing.txt")
    monkeypatch.setattr(doctor.load, "__defaults__", (build.LIBRARY,))
    build.REASON.write_text("no C++ compiler: looked for c++\n")


def test_without_native_kernels_pytorch_computes(nowhere: None) -> None:
    device = headstock_xeon.headstock_device(0, 0)
    registry = OpRegistry()
    headstock_xeon.headstock_register_ops(registry, device)
    assert type(device) is HostDevice
    assert [i.provider for i in registry.offered(rms_norm)] == ["reference"]


def test_the_doctor_says_why_native_kernels_are_missing(nowhere: None) -> None:
    (finding,) = (found for found in doctor.examine() if found.subject == doctor.SUBJECT)
    assert not finding.is_ok
    assert "no C++ compiler" in finding.text
    assert "headstock_xeon.build" in finding.remedy


def test_the_doctor_sees_a_library_older_than_its_sources(
    library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "sources_digest", lambda: "newer")
    (finding,) = (found for found in doctor.examine() if found.subject == doctor.SUBJECT)
    assert not finding.is_ok
    assert "older" in finding.text


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ({0: "0-3"}, "one memory node; threads keep to no core"),
        ({0: "0,2", 1: "1,3"}, "2 memory nodes; threads keep to cores, and ranks take them, in"),
        ({0: "0-1", 1: "1-3"}, "processors [1] are not in one node each; threads keep to no core"),
    ],
)
def test_the_doctor_says_what_threads_keep_to(
    library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nodes: dict[int, str], wanted: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for node, cpus in nodes.items():
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(cpus)
    (finding,) = (found for found in doctor.examine(tmp_path) if found.subject == "binding")
    assert finding.text.startswith(wanted)


@pytest.mark.parametrize("version", [None, "2.8.0"])
def test_the_doctor_says_why_an_ended_library_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None
) -> None:
    if version:
        folder = tmp_path / f"intel_extension_for_pytorch-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {doctor.IPEX}\nVersion: {version}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.left_out()
    assert finding.is_ok
    assert finding.text.startswith(f"{version} is installed" if version else "not installed")
    assert "ended with 2.8" in finding.text
    assert "intel_extension_for_pytorch" not in sys.modules


def test_native_kernels_open_a_device_that_names_them(library) -> None:
    device = headstock_xeon.headstock_device(0, 3)
    assert isinstance(device, XeonDevice)
    assert device.num_threads == 3
    assert "avx" in device.name or "amx" in device.name
    device.close()


def test_there_is_one_device() -> None:
    with pytest.raises(ConfigError, match="device_index is 1"):
        headstock_xeon.headstock_device(1, 0)
