"""A functional toy: memory is values, as on devices whose compiler makes writes into new values.

A tensor has one dtype: a view of it in another is a copy, which sees no later write, and into which
writes are lost. It has no address that the host could ask for. What the core or an op builds on
either of them fails here as it would on such a device, and nowhere else in these tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device

HOOK_API = (2, 2)


@hookimpl
def headstock_probe() -> Probe:
    device = ProbedDevice(index=0, name="functional", arch="toy-1", is_host=True)
    return Probe(status=Status.AVAILABLE, reason="it is a toy", score=1, devices=(device,))


@hookimpl
def headstock_device() -> Device:
    from headstock_toy.functional import FunctionalDevice

    return FunctionalDevice()


@hookimpl
def headstock_register_ops(registry: OpRegistry) -> None:
    from headstock_toy.register import register_ops

    register_ops(registry)
