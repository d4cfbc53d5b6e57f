"""A device that no longer answers is distinguished from a step that failed."""

from __future__ import annotations

import pytest

from headstock.errors import DeviceError
from headstock.plugins.host import HostDevice
from tests.runner.conftest import make_runner


class Failing:
    """A transfer that never arrives."""

    def wait(self):
        raise RuntimeError("an uncorrectable error of memory")


class Faulty(HostDevice):
    """A device that may fail at a transfer, and may not answer then."""

    name = "faulty"
    fails = False
    is_lost = False

    def fetch(self, source, into):
        return Failing() if self.fails else super().fetch(source, into)

    def synchronize(self):
        if self.is_lost:
            raise RuntimeError("an illegal memory access was encountered")


class TwoRanks:
    """A group of which another rank may be lost."""

    rank, size, is_capturable = 0, 2, True

    def broadcast(self, x):
        return x

    all_reduce = all_gather = broadcast


def run(kit, *, where, is_lost, group=None):
    """Run one job in which a launch, or the wait for a result, fails."""
    device = Faulty()
    driver = kit.driver(make_runner(kit.model, device, group=group))
    device.is_lost = is_lost
    kit.model.fails, device.fails = where == "launch", where == "result"
    driver.run(kit.job([3, 14, 15]))


@pytest.mark.parametrize("where", ["launch", "result"])
def test_a_device_that_answers_no_more_is_lost(kit, where):
    with pytest.raises(DeviceError, match="The device faulty failed at step 1: ") as caught:
        run(kit, where=where, is_lost=True)
    assert "illegal memory access" in str(caught.value.__cause__)


@pytest.mark.parametrize(("where", "kind"), [("launch", MemoryError), ("result", RuntimeError)])
def test_a_step_that_fails_on_a_device_that_answers_stays_what_it_was(kit, where, kind):
    with pytest.raises(kind):
        run(kit, where=where, is_lost=False)


def test_a_rank_does_not_wait_for_a_device_that_may_wait_for_another_rank(kit):
    with pytest.raises(MemoryError):
        run(kit, where="launch", is_lost=True, group=TwoRanks())
