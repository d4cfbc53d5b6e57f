"""The ascend backend: Huawei Ascend NPUs, through torch-npu and CANN."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headstock.plugins.hooks import ConfigPatch, hookimpl
from headstock.plugins.probe import Probe
from headstock_ascend.probe import probe

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry

HOOK_API = (2, 3)


@hookimpl
def headstock_probe() -> Probe:
    """Look for the NPU driver's device files."""
    return probe()


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
