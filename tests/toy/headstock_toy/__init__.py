"""A backend for tests that has no habit of any real device, to show what the core assumes.

Pages in head-major order and of odd sizes, memory that is counted, results that are not there
before they are waited for, and graphs that notice when a step is not the one that was captured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from headstock.plugins.hooks import ConfigPatch, Finding, hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    return Probe(
        status=Status.AVAILABLE,
        reason="it is a toy",
        score=1,
        devices=(
            ProbedDevice(index=0, name="toy", arch="toy-1", memory_bytes=64 << 20, is_host=True),
        ),
    )


@hookimpl
def headstock_device() -> Device:
    from headstock_toy.device import ToyDevice

    return ToyDevice()


@hookimpl
def headstock_register_ops(registry: OpRegistry) -> None:
    from headstock_toy.register import register_ops

    register_ops(registry)


@hookimpl
def headstock_configure(settings: Mapping[str, object]) -> Iterable[ConfigPatch]:
    reason = "the toy's pages hold 24 tokens"
    return [ConfigPatch(path="cache.page_size", value=24, reason=reason)]


@hookimpl
def headstock_doctor() -> Iterable[Finding]:
    return [Finding(subject="toy", is_ok=True, text="complete")]
