"""The tpu backend: Google TPUs, through torch-xla or torch-tpu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe
from headstock_tpu.probe import probe

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device

HOOK_API = (2, 2)


@hookimpl
def headstock_probe() -> Probe:
    """Look for TPU chips on the PCI bus, and for a runtime among the installed packages."""
    return probe()


@hookimpl
def headstock_device(index: int, options: Mapping[str, str]) -> Device:
    """Open chip ``index``, or torch-xla's CPU device where the options ask for that."""
    from headstock_tpu.open import open_device

    return open_device(index, options)


@hookimpl
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer attention over pages."""
    from headstock_tpu.register import register_ops

    register_ops(registry, device)
