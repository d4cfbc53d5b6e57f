"""Other weights between two steps, and profiles of so many steps."""

from __future__ import annotations

from collections import Counter

import pytest
from null_runner import NullRunner

from headstock.config.schema import CacheSettings, SchedulerSettings
from headstock.engine import build_engine
from headstock.errors import ConfigError
from headstock.wire.messages import (
    Ended,
    LoadWeights,
    Pause,
    ReadWeight,
    Resume,
    StartProfile,
    State,
    StopProfile,
    UpkeepReply,
    WeightRows,
)
from tests.engine.desk import Desk, ToyWeights


class ToyProfiler:
    def __init__(self) -> None:
        self.said: Counter[str] = Counter()

    def start(self, folder: str, *, has_stacks: bool, has_shapes: bool) -> str:
        if folder == "/full":
            raise ConfigError("The disk is full.", remedy="Make room.")
        self.said["start"] += 1
        return f"{folder}/trace"

    def stop(self) -> None:
        self.said["stop"] += 1


class CountingRunner(NullRunner):
    def __init__(self) -> None:
        super().__init__()
        self.launched: list[int] = []

    def launch(self, plan):  # type: ignore[no-untyped-def]
        self.launched.append(plan.step)
        return super().launch(plan)


class UpkeepDesk(Desk):
    def __init__(self) -> None:
        self.runner = CountingRunner()
        self.weights = ToyWeights(self.runner.launched)
        self.profiler = ToyProfiler()
        super().__init__(
            build_engine(
                self.runner,
                SchedulerSettings(),
                CacheSettings(),
                weights=self.weights,
                profiler=self.profiler,
            )
        )


@pytest.fixture
def desk() -> UpkeepDesk:
    return UpkeepDesk()


def test_running_requests_are_computed_anew_with_other_weights_and_no_prefix_is_left(
    desk: UpkeepDesk,
) -> None:
    desk.submit("a")
    desk.turn(5)
    desk.say(LoadWeights(call=-1, path="/new"))
    desk.turn(30)
    assert desk.of(UpkeepReply) == [UpkeepReply(call=-1, count=1)]
    assert len(set(desk.weights.seen_steps)) == 1, "a step was launched while weights were loaded"
    desk.turn(100)
    (ended,) = desk.of(Ended)
    assert (ended.num_outputs, ended.num_retractions) == (30, 1)
    cached_before = desk.engine.state().cached_pages
    assert cached_before > 0
    desk.say(LoadWeights(call=-2, path="/newer"))
    desk.turn(10)
    assert desk.engine.state().cached_pages == 0


def test_a_weight_is_read_at_once_but_not_while_others_are_loaded(desk: UpkeepDesk) -> None:
    desk.submit("a")
    desk.turn(2)
    desk.say(ReadWeight(call=1, name="norm", num_rows=2))
    desk.say(ReadWeight(call=2, name="other", num_rows=2))
    desk.say(LoadWeights(call=-1, path="/new"), ReadWeight(call=3, name="norm", num_rows=2))
    assert desk.of(WeightRows) == [
        WeightRows(call=1, shape=[2], values=bytes(8)),
        WeightRows(call=2, problem="There is none.", remedy="Take another."),
        WeightRows(
            call=3, problem="Other weights are being loaded.", remedy="Wait until they are."
        ),
    ]


def test_what_comes_while_weights_are_loaded_waits(desk: UpkeepDesk) -> None:
    desk.say(LoadWeights(call=-1, path="/new"))
    desk.submit("a", 2)
    desk.turn()
    assert desk.engine.state().is_paused
    assert not desk.runner.launched
    desk.turn(20)
    assert [ended.id for ended in desk.of(Ended)] == ["a"]


def test_weights_of_another_model_are_refused_and_nothing_is_held_back(desk: UpkeepDesk) -> None:
    desk.submit("a", 3)
    desk.say(LoadWeights(call=-1, path="/other"))
    (refusal,) = desk.of(UpkeepReply)
    assert refusal.problem == "It is of another model."
    desk.turn(20)
    assert desk.of(Ended)[0].num_retractions == 0


def test_two_loads_at_once_are_refused(desk: UpkeepDesk) -> None:
    desk.say(LoadWeights(call=-1, path="/new"), LoadWeights(call=-2, path="/newer"))
    assert desk.of(UpkeepReply)[0].problem == "Other weights are being loaded."
    assert desk.weights.begun == ["/new"]


def test_all_requests_end_first_where_that_is_asked(desk: UpkeepDesk) -> None:
    desk.submit("a")
    desk.turn(3)
    desk.say(LoadWeights(call=-1, path="/new", is_aborting=True))
    desk.turn(10)
    assert [ended.reason.kind for ended in desk.of(Ended)] == ["abort"]


@pytest.mark.parametrize("is_paused_before", [True, False])
def test_a_pause_outlasts_the_loading(desk: UpkeepDesk, is_paused_before: bool) -> None:
    pause = Pause(call=3, mode="in_place")
    load = LoadWeights(call=-1, path="/new")
    desk.say(*((pause, load) if is_paused_before else (load, pause)))
    desk.submit("a", 2)
    desk.turn(10)
    assert desk.of(UpkeepReply)
    assert desk.engine.state().is_paused
    desk.say(Resume(call=4))
    assert not desk.of(State)[-1].is_paused
    desk.turn(10)
    assert desk.of(Ended)


def test_a_resumption_while_weights_are_loaded_waits_for_them(desk: UpkeepDesk) -> None:
    desk.say(Pause(call=3, mode="in_place"), LoadWeights(call=-1, path="/new"), Resume(call=4))
    desk.submit("a", 2)
    desk.turn()
    assert not desk.runner.launched
    desk.turn(20)
    assert desk.of(Ended)


def test_weights_that_break_off_end_the_engine(desk: UpkeepDesk) -> None:
    desk.say(LoadWeights(call=-1, path="/torn"))
    with pytest.raises(OSError, match="ends early"):
        desk.turn(5)


def test_a_profile_ends_after_its_steps(desk: UpkeepDesk) -> None:
    desk.say(StartProfile(call=1, folder="/tmp", num_steps=4))
    assert desk.of(UpkeepReply) == [UpkeepReply(call=1, path="/tmp/trace")]
    desk.submit("a", 20)
    desk.turn(4)
    assert desk.profiler.said == {"start": 1}
    desk.turn(40)
    assert desk.profiler.said == {"start": 1, "stop": 1}
    desk.say(StopProfile(call=2))
    reply = desk.of(UpkeepReply)[-1]
    assert (reply.call, reply.path, reply.problem) == (2, "/tmp/trace", "")
    assert 4 <= reply.count <= 5


def test_a_profile_ends_when_it_is_told_to(desk: UpkeepDesk) -> None:
    desk.say(StartProfile(call=1, folder="/tmp", num_steps=100))
    desk.submit("a", 6)
    desk.turn(30)
    desk.say(StopProfile(call=2))
    assert desk.of(UpkeepReply)[-1] == UpkeepReply(call=2, path="/tmp/trace", count=6)
    assert not desk.engine.is_preparing


def test_profiles_that_cannot_be_are_refused(desk: UpkeepDesk) -> None:
    desk.say(StopProfile(call=1), StartProfile(call=2, folder="/full", num_steps=1))
    desk.say(*[StartProfile(call=n, folder="/tmp", num_steps=1) for n in (3, 4)])
    problems = [reply.problem for reply in desk.of(UpkeepReply)]
    assert problems == [
        "No profile was recorded.", "The disk is full.", "", "A profile is being recorded.",
    ]  # fmt: skip


def test_an_engine_without_either_says_so() -> None:
    engine = build_engine(NullRunner(), SchedulerSettings(), CacheSettings())
    replies = engine.receive([LoadWeights(call=-1, path="/x"), StartProfile(call=1, num_steps=1)])
    assert all(isinstance(reply, UpkeepReply) and reply.problem for reply in replies)
