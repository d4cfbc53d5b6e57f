"""What is said of a step that failed for the device's sake: no memory was left, or it is lost."""

from __future__ import annotations

from headstock.errors import ConfigError, DeviceError
from headstock.observe.units import GIB
from headstock.plugins.device import Device
from headstock.wire.steps import StepPlan


def out_of_memory(device: Device, plan: StepPlan) -> ConfigError:
    """Return what to tell of a step that found no memory, and what would leave it some.

    The plan of the memory leaves room for every step; others may have taken it.
    """
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


def check_answers(device: Device, step: int, error: Exception) -> None:
    """After ``error`` in a step: ask ``device`` to finish what it was given.

    A step can fail for want of memory, or by a defect; the next one may succeed. After a fault of
    the device itself (an illegal access, an uncorrectable error of its memory) none ever does in
    this process. Libraries raise the same kinds of error for both, but a lost device does not even
    answer.

    Args:
        device: Where the step ran.
        step: Its number.
        error: What it failed with.

    Raises:
        DeviceError: The device is lost.
    """
    try:
        device.synchronize()
    except Exception as lost:
        first = str(error).strip().split("\n", 1)[0]
        raise DeviceError(
            f"The device {device.name} failed at step {step}: {first}.",
            remedy="The engine is started again; see the driver's log if it happens again.",
        ) from lost
