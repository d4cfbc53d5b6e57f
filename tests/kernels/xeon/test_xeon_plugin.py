"""The backend's hooks: with and without native kernels."""

from __future__ import annotations

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
    (finding,) = doctor.examine()
    assert not finding.is_ok
    assert "no C++ compiler" in finding.text
    assert "headstock_xeon.build" in finding.remedy


def test_the_doctor_sees_a_library_older_than_its_sources(
    library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "sources_digest", lambda: "newer")
    first, *_ = doctor.examine()
    assert not first.is_ok
    assert "older" in first.text


def test_native_kernels_open_a_device_that_names_them(library) -> None:
    device = headstock_xeon.headstock_device(0, 3)
    assert isinstance(device, XeonDevice)
    assert device.num_threads == 3
    assert "avx" in device.name or "amx" in device.name
    device.close()


def test_there_is_one_device() -> None:
    with pytest.raises(ConfigError, match="device_index is 1"):
        headstock_xeon.headstock_device(1, 0)
