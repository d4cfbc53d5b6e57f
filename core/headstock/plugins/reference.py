"""The built-in backend: the ops' references on the host's processor. Slow, right, always there."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from headstock.errors import ConfigError
from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

if TYPE_CHECKING:
    from headstock.plugins.device import Device

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Always AVAILABLE, with the lowest score."""
    arch = platform.machine() or "unknown"
    return Probe(
        status=Status.AVAILABLE,
        reason="plain PyTorch on the host's processor",
        score=0,
        devices=(ProbedDevice(index=0, name=f"host ({arch})", arch=arch, is_host=True),),
    )


@hookimpl
def headstock_device(index: int, num_threads: int) -> Device:
    """Open the host.

    Raises:
        ConfigError: ``index`` is not 0.
    """
    from headstock.plugins.host import HostDevice

    if index != 0:
        raise ConfigError(
            f"device_index is {index}; the reference backend has device 0 only.",
            remedy="Drop --device-index, or choose another --backend.",
        )
    return HostDevice(num_threads=num_threads)
