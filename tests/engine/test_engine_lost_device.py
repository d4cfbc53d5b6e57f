"""A device that faults at any step: its engine ends, and ends no request by itself."""

from __future__ import annotations

from typing import Any

import pytest
from null_runner import NullRunner
from test_engine_loop import Script, ended, submit

from headstock.errors import DeviceError
from headstock.wire.messages import Crashed
from headstock.wire.steps import StepPlan, StepResult


class Losing(NullRunner):
    """A runner whose device is lost when it explodes."""

    def launch(self, plan: StepPlan) -> Any:
        try:
            return super().launch(plan)
        except RuntimeError as error:
            raise lost(error) from error

    def result(self, handle: Any) -> StepResult:
        try:
            return super().result(handle)
        except RuntimeError as error:
            raise lost(error) from error


def lost(error: RuntimeError) -> DeviceError:
    return DeviceError(f"The device is lost: {error}.", remedy="Nothing here.")


@pytest.mark.parametrize("where", ["launch", "result"])
@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_lost_device_ends_the_engine_and_leaves_its_requests_to_the_next(
    step: int, where: str
) -> None:
    script = Script([submit("a"), submit("b")])
    with pytest.raises(DeviceError, match=f"The device is lost: {where} {step} exploded"):
        script.run(Losing(explode={step: where}))
    assert ended(script) == []
    crashed = script.sent[-1]
    assert isinstance(crashed, Crashed)
    assert not crashed.is_config
    assert f"{where} {step} exploded" in crashed.problem


@pytest.mark.parametrize("where", ["launch", "result"])
def test_a_step_that_fails_on_a_device_that_answers_is_no_loss(where: str) -> None:
    script = Script([submit("a"), submit("b")])
    script.run(NullRunner(explode={2: where}))
    assert sorted(ended(script)) == ["a", "b"]
    assert not [message for message in script.sent if isinstance(message, Crashed)]
