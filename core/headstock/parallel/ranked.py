"""A runner on several ranks: each runs every plan on its slice of the model."""

from __future__ import annotations

from headstock.errors import DeviceError
from headstock.parallel.launch import Ranks
from headstock.wire.steps import Masks, Runner, RunnerLimits, StepHandle, StepPlan, StepResult


class RankedRunner:
    """Rank 0's runner, which takes the other ranks along.

    Whatever goes wrong is final: the ranks may stand at different collectives after it.

    Args:
        local: Rank 0's own.
        ranks: The others; ended by :meth:`close`.
    """

    def __init__(self, local: Runner, ranks: Ranks) -> None:
        self._local = local
        self._ranks = ranks

    @property
    def limits(self) -> RunnerLimits:
        """What every rank can hold."""
        return self._local.limits

    def launch(self, plan: StepPlan) -> StepHandle:
        """Queue ``plan`` on every rank.

        Raises:
            DeviceError: A rank is lost, or the step failed.
        """
        self._ranks.send(plan)
        try:
            return self._local.launch(plan)
        except Exception as error:
            raise self._final(plan.step, error) from error

    def sample(self, handle: StepHandle, masks: Masks) -> None:
        """Queue the draws of a launched step with masked rows, on every rank.

        Raises:
            DeviceError: A rank is lost, or the step failed.
        """
        self._ranks.send(masks)
        try:
            self._local.sample(handle, masks)
        except Exception as error:
            raise self._final(handle.step, error) from error

    def result(self, handle: StepHandle) -> StepResult:
        """Wait for a launched step and return what rank 0 drew.

        Raises:
            DeviceError: A rank is lost, or the step failed.
        """
        try:
            return self._local.result(handle)
        except Exception as error:
            raise self._final(handle.step, error) from error

    def close(self) -> None:
        """End the ranks, close rank 0's own runner, which leaves the group; remove the folder."""
        self._ranks.end()
        self._local.close()
        self._ranks.close()

    def _final(self, step: int, error: Exception) -> Exception:
        cause = self._ranks.explain(error)
        if isinstance(cause, DeviceError):
            return cause
        return DeviceError(
            f"Step {step} failed on rank 0: {cause}.",
            remedy="All ranks are started again; see the traceback in the engine's log.",
        )
