"""The rocm backend: AMD GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headstock.plugins.hooks import Finding, GroupInfo, hookimpl
from headstock.plugins.probe import Probe, Status
from headstock_rocm.libraries import findings
from headstock_rocm.probe import probe

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.communication import Group
    from headstock.plugins.device import Device

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Read the kernel driver's list of GPUs, and how the installed PyTorch was built."""
    return probe()


@hookimpl
def headstock_device(index: int) -> Device:
    """Open GPU ``index``."""
    from headstock_rocm.device import RocmDevice

    return RocmDevice(index)


@hookimpl
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer the Triton kernels, and below them what AMD's libraries compute."""
    from headstock_rocm.register import register_ops

    register_ops(registry, device)


@hookimpl
def headstock_communication(group: GroupInfo, device: Device) -> Group:
    """Join the GPUs of one host by RCCL."""
    from headstock_triton.gpu.communication import GpuGroup

    return GpuGroup(group, device.torch_device)


@hookimpl
def headstock_doctor() -> Iterable[Finding]:
    """Say which optional libraries are here, where there is a GPU for them."""
    return findings() if probe().status is Status.AVAILABLE else ()
