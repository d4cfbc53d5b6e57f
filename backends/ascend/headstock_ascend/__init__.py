"""The ascend backend: Huawei Ascend NPUs, through torch-npu and CANN."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headstock.plugins.hooks import ConfigPatch, Finding, GroupInfo, hookimpl
from headstock.plugins.probe import Probe
from headstock_ascend.probe import findings, probe

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.communication import Group
    from headstock.plugins.device import Device

HOOK_API = (2, 3)


@hookimpl
def headstock_probe() -> Probe:
    """Look for the driver's device files, for torch-npu, and for CANN's libraries."""
    return probe()


@hookimpl
def headstock_device(index: int) -> Device:
    """Open NPU ``index``."""
    from headstock_ascend.open import open_device

    return open_device(index)


@hookimpl
def headstock_configure() -> Iterable[ConfigPatch]:
    """Ask for pages that the attention kernel takes."""
    reason = "attention reads pages of 128 tokens"
    return [ConfigPatch(path="cache.page_size", value=128, reason=reason)]


@hookimpl
def headstock_register_ops(registry: OpRegistry) -> None:
    """Offer the kernels of CANN."""
    from headstock_ascend.register import register_ops

    register_ops(registry)


@hookimpl
def headstock_communication(group: GroupInfo, device: Device) -> Group:
    """Join the NPUs of one host by HCCL."""
    from headstock_ascend.communication import HcclGroup

    return HcclGroup(group, device.torch_device)


@hookimpl
def headstock_doctor() -> Iterable[Finding]:
    """Say what of the software is here, where the driver shows an NPU."""
    return findings() if probe().devices else ()
