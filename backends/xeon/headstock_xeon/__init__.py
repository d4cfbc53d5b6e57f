"""The xeon backend: x86-64 processors from AVX2 up, with native kernels and captured steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from headstock.errors import ConfigError
from headstock.plugins.hooks import Finding, hookimpl
from headstock.plugins.probe import Probe
from headstock_xeon.probe import probe

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Read what the processor can do."""
    return probe()


@hookimpl
def headstock_device(index: int, num_threads: int) -> Device:
    """Open the processor; without native kernels PyTorch computes, and the doctor says why.

    Raises:
        ConfigError: ``index`` is not 0.
    """
    from headstock.plugins.host import HostDevice
    from headstock_xeon import build
    from headstock_xeon.device import XeonDevice
    from headstock_xeon.native import MEASURED, load
    from headstock_xeon.primitives import bound_primitives

    if index != 0:
        raise ConfigError(
            f"device_index is {index}; a machine's processors are one device, 0.",
            remedy="Drop --device-index.",
        )
    bound_primitives()
    if not build.LIBRARY.exists():
        return HostDevice(num_threads=num_threads)
    library, devices = load(), probe().devices
    name = devices[0].name if devices else "x86-64"
    features = library.features | MEASURED
    return XeonDevice(name, library, num_threads=num_threads, features=features)


@hookimpl
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer the native kernels."""
    from headstock_xeon.device import XeonDevice
    from headstock_xeon.kernels.register import register

    if isinstance(device, XeonDevice):
        register(registry, device)


@hookimpl
def headstock_doctor() -> Iterable[Finding]:
    """Say whether the native kernels are there, and as new as their sources."""
    from headstock_xeon.doctor import examine

    return examine()
