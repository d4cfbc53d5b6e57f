"""The boundary to the runner: whatever goes wrong behind it arrives as one kind of error."""

from __future__ import annotations

from headstock.errors import ConfigError, DeviceError, HeadstockError, describe
from headstock.wire.messages import Crashed
from headstock.wire.steps import Masks, Runner, RunnerLimits, StepHandle, StepPlan, StepResult


class RunnerError(RuntimeError):
    """The runner raised; its cause is what it raised."""


class GuardedRunner:
    """A runner whose every failure is a :class:`RunnerError`.

    Drivers, kernels and plugins raise what they like: this is where it stops. A lost device
    passes: no request can be served any more.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def limits(self) -> RunnerLimits:
        """What it can hold."""
        return self._runner.limits

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue ``plan``; see :class:`headstock.wire.steps.Runner`."""
        try:
            return self._runner.launch(plan)
        except DeviceError:
            raise
        except Exception as error:
            raise RunnerError(f"step {plan.step} did not start: {explain(error)}") from error

    def sample(self, handle: StepHandle, masks: Masks) -> None:
        """Queue the draws of a launched step with masked rows."""
        try:
            self._runner.sample(handle, masks)
        except DeviceError:
            raise
        except Exception as error:
            raise RunnerError(f"step {handle.step} was not drawn from: {explain(error)}") from error

    def result(self, handle: StepHandle) -> StepResult:
        """Wait for a launched step."""
        try:
            return self._runner.result(handle)
        except DeviceError:
            raise
        except Exception as error:
            raise RunnerError(f"step {handle.step} failed: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """Return what went wrong and, where we know, what to do about it."""
    remedy = f" {error.remedy}" if isinstance(error, HeadstockError) else ""
    return describe(error) + remedy


def crash_report(error: BaseException) -> Crashed:
    """Return what to tell the API process before this process ends because of ``error``."""
    cause = error.__cause__ if isinstance(error, RunnerError) and error.__cause__ else error
    if isinstance(cause, HeadstockError):
        remedy = cause.remedy
    else:
        remedy = "See the engine's log for the traceback; report it if it happens again."
    return Crashed(problem=describe(cause), remedy=remedy, is_config=isinstance(cause, ConfigError))
