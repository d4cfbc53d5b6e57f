"""A device that faults at any step: its engine ends, and ends no request by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from null_runner import NullRunner
from test_engine_loop import Script, ended, submit

from headstock.engine.guard import RunnerError
from headstock.errors import DeviceError
from headstock.runner.watched import WatchedRunner
from headstock.wire.messages import Crashed
from headstock.wire.steps import StepPlan, StepResult

if TYPE_CHECKING:
    from headstock.plugins.device import Device


class Failing(NullRunner):
    """A runner that knows whether it has exploded."""

    has_failed = False

    def launch(self, plan: StepPlan) -> Any:
        try:
            return super().launch(plan)
        except RuntimeError:
            self.has_failed = True
            raise

    def result(self, handle: Any) -> StepResult:
        try:
            return super().result(handle)
        except RuntimeError:
            self.has_failed = True
            raise


class Faulty:
    """A device that answers no more once ``runner`` has failed, if ``is_lost``."""

    name = "faulty"

    def __init__(self, runner: Failing, *, is_lost: bool) -> None:
        self.runner = runner
        self.is_lost = is_lost

    def synchronize(self) -> None:
        if self.is_lost and self.runner.has_failed:
            raise RuntimeError("an illegal memory access was encountered")


def watched(step: int, where: str, *, is_lost: bool) -> Any:
    runner = Failing(explode={step: where})
    return WatchedRunner(cast("Any", runner), cast("Device", Faulty(runner, is_lost=is_lost)))


@pytest.mark.parametrize("where", ["launch", "result"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_lost_device_ends_the_engine_and_leaves_its_requests_to_the_next(
    step: int, where: str
) -> None:
    script = Script([submit("a"), submit("b")])
    with pytest.raises(DeviceError, match=f"The device faulty failed at step {step}: {where}"):
        script.run(watched(step, where, is_lost=True))
    assert ended(script) == []
    crashed = script.sent[-1]
    assert isinstance(crashed, Crashed)
    assert not crashed.is_config
    assert f"faulty failed at step {step}" in crashed.problem


@pytest.mark.parametrize("where", ["launch", "result"])
def test_a_step_that_fails_on_a_device_that_answers_is_no_loss(where: str) -> None:
    script = Script([submit("a"), submit("b")])
    script.run(watched(2, where, is_lost=False))
    assert sorted(ended(script)) == ["a", "b"]
    assert not [message for message in script.sent if isinstance(message, Crashed)]


def test_a_failure_that_is_no_loss_stays_what_it_was() -> None:
    runner = watched(1, "launch", is_lost=False)
    with pytest.raises(RuntimeError, match="exploded") as caught:
        runner.launch(cast("Any", type("Plan", (), {"step": 1})()))
    assert not isinstance(caught.value, RunnerError | DeviceError)
