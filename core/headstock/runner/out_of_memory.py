"""What to tell when there is no memory. The plan leaves room; others may have taken it."""

from __future__ import annotations

from headstock.errors import ConfigError
from headstock.observe.units import GIB
from headstock.plugins.device import Device
from headstock.wire.steps import StepPlan


def out_of_memory(device: Device, plan: StepPlan) -> ConfigError:
    """Return what to tell of a step that found no memory, and what would leave it some."""
    memory, tokens = device.memory(), sum(plan.rows.query_max)
    return ConfigError(
        f"The device ran out of memory in a step of {tokens:,} tokens:"
        f" {memory.free / GIB:.2f} GiB of {memory.total / GIB:.2f} are free.",
        remedy="Lower --memory-fraction or --chunked-prefill-size, or stop what else uses it.",
    )


def no_room_to_wake(device: Device) -> ConfigError:
    """Return what to tell when pages that were given back find no memory any more."""
    memory = device.memory()
    return ConfigError(
        "The device has no memory for the pages that were given back:"
        f" {memory.free / GIB:.2f} GiB of {memory.total / GIB:.2f} are free.",
        remedy="Stop what else uses the device, then wake the server again.",
    )
