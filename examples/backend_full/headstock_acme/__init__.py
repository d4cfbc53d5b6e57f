"""The acme backend: its hooks. Importing this loads neither torch nor a vendor's library."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from headstock.plugins.hooks import GroupInfo, hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.communication import Group
    from headstock.plugins.device import Device

HOOK_API = (2, 1)
"""The version of the hooks that this package was written for."""


@hookimpl
def headstock_probe() -> Probe:
    """Say whether this backend can run here. Yours looks for its hardware; this one needs none."""
    arch = platform.machine() or "unknown"
    return Probe(
        status=Status.AVAILABLE,
        reason="it runs on any processor",
        score=1,  # above the built-in reference, below everything that is fast
        devices=(ProbedDevice(index=0, name=f"host ({arch})", arch=arch, is_host=True),),
    )


@hookimpl
def headstock_device(index: int, num_threads: int) -> Device:
    """Open device ``index``. Called once, in the engine process: torch may be imported now."""
    from headstock_acme.device import open_device

    return open_device(index, num_threads)


@hookimpl
def headstock_register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer what this backend computes better than the reference."""
    from headstock_acme.ops import register

    register(registry)


@hookimpl
def headstock_communication(group: GroupInfo) -> Group:
    """Join the other ranks."""
    from headstock_acme.group import AcmeGroup

    return AcmeGroup(group)
