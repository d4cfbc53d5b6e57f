"""What an AMD GPU offers, told from its architecture's name; no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from headstock.errors import UnsupportedError
from headstock.ops.base import OpRegistry
from headstock.ops.linear import FP8_GROUP, MXFP4, linear
from headstock.ops.moe import experts
from headstock_rocm.device import MATRIX_CORES, capabilities_of
from headstock_triton import register
from headstock_triton.target import Target


@pytest.mark.parametrize("arch", MATRIX_CORES)
def test_an_architecture_is_a_capability_of_its_own(arch: str) -> None:
    found = capabilities_of(f"{arch}:sramecc+:xnack-")
    assert {"rocm", "bf16", arch} <= found
    assert not [name for name in found if name.startswith("sm_")]
    assert {"fp8", "fp8_fnuz"} - found, "a GPU has one format of 8-bit floats at most"


def test_an_older_gpu_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="is a gfx906; one of gfx90a"):
        capabilities_of("gfx906:sramecc+:xnack-")


def test_what_is_of_one_vendor_alone_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(kind="hip", num_sms=304)
    monkeypatch.setattr(register.Target, "of", lambda device: target)
    registry = OpRegistry()
    device = SimpleNamespace(capabilities=capabilities_of("gfx942"))
    register.register_ops(registry, device)
    for op in (linear, experts):
        for implementation in registry.offered(op):
            if implementation.provider != "triton":
                continue
            missing = implementation.requires.capabilities - device.capabilities
            if implementation.requires.layouts == {FP8_GROUP}:
                assert missing in ({"sm_90"}, {"fp8"}, set())
            else:
                assert not missing
            assert MXFP4 not in implementation.requires.layouts
