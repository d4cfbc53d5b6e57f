"""Tells a device that is lost from a step that failed.

A step can fail for want of memory, or by a defect; the next one may succeed. After a fault of the
device itself (an illegal access, an uncorrectable error of its memory) none ever does in this
process. Libraries raise the same kinds of error for both. But a lost device does not even answer
when it is asked to finish what it was given, and that is asked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.errors import DeviceError
from headstock.wire.steps import Masks, Runner, RunnerLimits, StepHandle, StepPlan, StepResult

if TYPE_CHECKING:
    from headstock.plugins.device import Device


class WatchedRunner:
    """A runner whose failures are a :class:`DeviceError` where its device is lost.

    Args:
        runner: Whose steps are run.
        device: On which.
    """

    def __init__(self, runner: Runner, device: Device) -> None:
        self._runner = runner
        self._device = device

    @property
    def limits(self) -> RunnerLimits:
        """What it can hold."""
        return self._runner.limits

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue ``plan``.

        Raises:
            DeviceError: The device is lost.
        """
        try:
            return self._runner.launch(plan)
        except Exception as error:
            self._check(plan.step, error)
            raise

    def sample(self, handle: StepHandle, masks: Masks) -> None:
        """Queue the draws of a launched step with masked rows.

        Raises:
            DeviceError: The device is lost.
        """
        try:
            self._runner.sample(handle, masks)
        except Exception as error:
            self._check(handle.step, error)
            raise

    def result(self, handle: StepHandle) -> StepResult:
        """Wait for a launched step.

        Raises:
            DeviceError: The device is lost.
        """
        try:
            return self._runner.result(handle)
        except Exception as error:
            self._check(handle.step, error)
            raise

    def close(self) -> None:
        """Close the runner."""
        self._runner.close()

    def _check(self, step: int, error: Exception) -> None:
        try:
            self._device.synchronize()
        except Exception as lost:
            first = str(error).strip().split("\n", 1)[0]
            raise DeviceError(
                f"The device {self._device.name} failed at step {step}: {first}.",
                remedy="The engine is started again; see the driver's log if it comes again.",
            ) from lost
