"""The ascend backend on the host's processor, for tests: its own code over made-up kernels.

Everything but ``torch.npu`` and the kernels is the backend's. Those have the schemas of torch-npu,
and refuse what its manual says that an NPU refuses. float32 is let into attention, since the kit
compares tokens in it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headstock.plugins.hooks import ConfigPatch, GroupInfo, hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.communication import Group
    from headstock.plugins.device import Device

HOOK_API = (2, 3)


@hookimpl
def headstock_probe() -> Probe:
    devices = (ProbedDevice(index=0, name="NPU on the host", arch="none", is_host=True),)
    return Probe(status=Status.AVAILABLE, reason="it is for tests", score=1, devices=devices)


@hookimpl
def headstock_device() -> Device:
    from headstock_npu_on_cpu.device import NpuOnCpu

    return NpuOnCpu()


@hookimpl
def headstock_register_ops(registry: OpRegistry) -> None:
    from headstock_ascend.register import register_attention, register_ops

    register_ops(registry)
    register_attention(registry, "float32")


@hookimpl
def headstock_configure() -> Iterable[ConfigPatch]:
    import headstock_ascend

    return headstock_ascend.headstock_configure()


@hookimpl
def headstock_communication(group: GroupInfo, device: Device) -> Group:
    from headstock_npu_on_cpu.device import GlooGroup

    return GlooGroup(group, device.torch_device)
