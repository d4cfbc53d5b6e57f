"""The cuda backend: NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headstock.plugins.hooks import Finding, GroupInfo, hookimpl
from headstock.plugins.probe import Probe, Status
from headstock_cuda.optional import findings
from headstock_cuda.probe import probe

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.communication import Group
    from headstock.plugins.device import Device

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Ask the driver for its GPUs, and read how the installed PyTorch was built."""
    return probe()


@hookimpl
def headstock_device(index: int) -> Device:
    """Open GPU ``index``."""
    from headstock_cuda.device import CudaDevice

    return CudaDevice(index)


@hookimpl
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer the Triton kernels, with cuBLAS behind PyTorch, and attention by optional libraries."""
    from headstock_cuda.register import register_ops

    register_ops(registry, device)


@hookimpl
def headstock_communication(group: GroupInfo, device: Device) -> Group:
    """Join the GPUs of one host by NCCL, with our own kernel for small sums."""
    from headstock_cuda.peer_sum import open_peer_sum
    from headstock_triton.gpu.communication import GpuGroup

    return GpuGroup(group, device.torch_device, open_small_sum=open_peer_sum)


@hookimpl
def headstock_doctor() -> Iterable[Finding]:
    """Say which optional libraries are here, where there is a GPU for them."""
    return findings() if probe().status is Status.AVAILABLE else ()
