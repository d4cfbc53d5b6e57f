"""An engine that sleeps: what runs gives its pages back, waits, and draws the same after that."""

from __future__ import annotations

import pytest
from null_runner import NullRunner

from headstock.config.schema import CacheSettings, SchedulerSettings
from headstock.engine import build_engine
from headstock.errors import ConfigError
from headstock.wire.messages import (
    Ended,
    LoadWeights,
    Pause,
    Resume,
    Sleep,
    UpkeepReply,
    Wake,
)
from tests.engine.desk import Desk, ToyWeights


class ToyPages:
    """Pages that say whether they are there."""

    def __init__(self) -> None:
        self.is_there = True
        self.has_room = True
        self.releases = 0

    def release_pages(self) -> int:
        assert self.is_there
        self.is_there = False
        self.releases += 1
        return 77

    def restore_pages(self) -> None:
        assert not self.is_there
        if not self.has_room:
            raise ConfigError("There is no room.", remedy="Make some.")
        self.is_there = True


class PagedRunner(NullRunner):
    """Launches no step without pages."""

    def __init__(self, pages: ToyPages) -> None:
        super().__init__()
        self.pages = pages

    def launch(self, plan):  # type: ignore[no-untyped-def]
        assert self.pages.is_there, "a step runs without pages"
        return super().launch(plan)


class SleepDesk(Desk):
    def __init__(self, pages: ToyPages | str | None = None) -> None:
        self.pages = ToyPages()
        runner = PagedRunner(self.pages)
        super().__init__(
            build_engine(
                runner,
                SchedulerSettings(),
                CacheSettings(),
                weights=ToyWeights([]),
                pages=self.pages if pages is None else pages,
            )
        )


@pytest.fixture
def desk() -> SleepDesk:
    return SleepDesk()


def undisturbed(name: str) -> list[int]:
    desk = SleepDesk()
    desk.submit(name)
    desk.turn(100)
    return desk.drawn(name)


def test_what_runs_waits_and_goes_on_with_the_same_ids(desk: SleepDesk) -> None:
    desk.submit("a")
    desk.turn(5)
    desk.say(Sleep(call=1))
    desk.turn(20)
    assert desk.of(UpkeepReply) == [UpkeepReply(call=1, count=77)]
    assert not desk.pages.is_there
    state = desk.engine.state()
    assert (state.is_paused, state.cached_pages, state.free_pages) == (True, 0, state.total_pages)
    assert not desk.of(Ended)
    desk.say(Wake(call=2))
    desk.turn(100)
    assert desk.of(UpkeepReply)[1:] == [UpkeepReply(call=2)]
    assert desk.of(Ended)[0].num_outputs == 30
    assert desk.drawn("a") == undisturbed("a")


def test_what_comes_meanwhile_waits(desk: SleepDesk) -> None:
    desk.say(Sleep(call=1))
    desk.turn(2)
    desk.submit("a", 2)
    desk.turn(5)
    assert not desk.of(Ended)
    desk.say(Wake(call=2))
    desk.turn(10)
    assert [ended.id for ended in desk.of(Ended)] == ["a"]


def test_a_second_order_finds_it_asleep_and_a_second_wake_awake(desk: SleepDesk) -> None:
    desk.say(Wake(call=1), Sleep(call=2), Sleep(call=3))
    desk.turn(2)
    desk.say(Sleep(call=4))
    desk.turn(2)
    desk.say(Wake(call=5), Wake(call=6))
    assert [(one.call, one.problem) for one in desk.of(UpkeepReply)] == [
        (1, ""), (2, ""), (3, ""), (4, ""), (5, ""), (6, ""),
    ]  # fmt: skip
    assert desk.pages.releases == 1


def test_it_can_be_woken_before_it_sleeps(desk: SleepDesk) -> None:
    desk.submit("a")
    desk.turn(3)
    desk.say(Sleep(call=1), Wake(call=2))
    desk.turn(100)
    assert [bool(one.problem) for one in desk.of(UpkeepReply)] == [True, False]
    assert desk.pages.releases == 0
    assert desk.drawn("a") == undisturbed("a")


def test_without_room_it_sleeps_on(desk: SleepDesk) -> None:
    desk.say(Sleep(call=1))
    desk.turn(2)
    desk.pages.has_room = False
    desk.submit("a", 2)
    desk.say(Wake(call=2))
    desk.turn(5)
    assert desk.of(UpkeepReply)[-1] == UpkeepReply(
        call=2, problem="There is no room.", remedy="Make some."
    )
    assert not desk.of(Ended)
    desk.pages.has_room = True
    desk.say(Wake(call=3))
    desk.turn(10)
    assert desk.of(Ended)


def test_a_pause_of_the_operator_outlives_sleep(desk: SleepDesk) -> None:
    desk.submit("a", 3)
    desk.say(Pause(call=1, mode="in_place"), Sleep(call=2))
    desk.turn(3)
    desk.say(Wake(call=3))
    desk.turn(10)
    assert not desk.of(Ended)
    desk.say(Resume(call=4))
    desk.turn(10)
    assert desk.of(Ended)


def test_weights_are_loaded_while_it_sleeps(desk: SleepDesk) -> None:
    desk.submit("a", 3)
    desk.turn(2)
    desk.say(Sleep(call=1))
    desk.turn(3)
    desk.say(LoadWeights(call=-1, path="/new"))
    desk.turn(10)
    assert [one.call for one in desk.of(UpkeepReply)] == [1, -1]
    assert desk.engine.state().is_paused
    desk.say(Wake(call=2))
    desk.turn(20)
    assert desk.of(Ended)


def test_it_is_woken_while_weights_are_loaded(desk: SleepDesk) -> None:
    desk.say(Sleep(call=1))
    desk.turn(2)
    desk.say(LoadWeights(call=-1, path="/new"), Wake(call=2))
    desk.submit("a", 3)
    assert desk.engine.state().is_paused
    desk.turn(30)
    assert desk.of(Ended)
    assert not desk.engine.state().is_paused


def test_a_device_that_keeps_its_memory_says_why() -> None:
    desk = SleepDesk(pages="It keeps it.")
    desk.say(Sleep(call=1))
    assert desk.of(UpkeepReply)[0].problem == "It keeps it."
    assert not desk.engine.state().is_paused
