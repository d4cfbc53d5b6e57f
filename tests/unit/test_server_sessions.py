"""Sessions: contexts of turns that go on, branch, are cut and are replaced."""

from __future__ import annotations

import pytest

from headstock.errors import RequestError
from headstock.server import sessions as module
from headstock.server.sessions import Continuation, SessionParams, Sessions


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def opened(capacity: int = 100, timeout_s: float | None = None) -> tuple[Sessions, Clock]:
    clock = Clock()
    sessions = Sessions(clock)
    sessions.open("me", name="s", capacity=capacity, timeout_s=timeout_s)
    return sessions, clock


def turn(sessions: Sessions, name: str, new: list[int], out: list[int], **params) -> list[int]:
    """Take a turn, and return its whole prompt."""
    place = sessions.go_on("me", SessionParams("s", **params))
    prompt = place.prompt(new, bos_id=0)
    place.record(name, prompt, out)
    return prompt


def test_a_turn_goes_on_from_prompt_and_output_without_a_second_beginning() -> None:
    sessions, _ = opened()
    assert turn(sessions, "a", [0, 1, 2], [3]) == [0, 1, 2]
    assert turn(sessions, "b", [0, 4], [5, 6], rid="a") == [0, 1, 2, 3, 4]
    assert turn(sessions, "c", [7], [8], rid="b") == [0, 1, 2, 3, 4, 5, 6, 7]


def test_several_turns_go_on_from_one() -> None:
    sessions, _ = opened()
    turn(sessions, "a", [1], [2])
    assert turn(sessions, "left", [3], [4], rid="a") == [1, 2, 3]
    assert turn(sessions, "right", [5], [6], rid="a") == [1, 2, 5]
    assert turn(sessions, "more", [7], [8], rid="left") == [1, 2, 3, 4, 7]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"offset": 0}, [1, 2, 3, 4, 5, 9]),
        ({"offset": 2}, [1, 2, 9]),
        ({"offset": -1}, [1, 2, 3, 4, 9]),
        ({"drop_previous_output": True}, [1, 2, 3, 4, 9]),
        ({"drop_previous_output": True, "offset": 1}, [1, 9]),
        ({"offset": -99}, [9]),
    ],
)
def test_what_is_kept_of_a_turn_can_be_cut(params, expected) -> None:
    sessions, _ = opened()
    turn(sessions, "a", [1, 2], [3])
    turn(sessions, "b", [4], [5], rid="a")
    assert turn(sessions, "c", [9], [10, 11], rid="b", **params) == expected
    assert turn(sessions, "d", [12], [], rid="c") == [*expected, 10, 11, 12]


def test_replacing_forgets_what_went_on_from_a_turn() -> None:
    sessions, _ = opened()
    turn(sessions, "a", [1], [2])
    turn(sessions, "b", [3], [4], rid="a")
    turn(sessions, "c", [5], [6], rid="b")
    assert turn(sessions, "d", [7], [8], rid="a", replace=True) == [1, 2, 7]
    for gone in ("b", "c"):
        with pytest.raises(RequestError, match="no turn") as caught:
            turn(sessions, "e", [1], [], rid=gone)
        assert caught.value.field == "session_params.rid"
    turn(sessions, "f", [1], [], replace=True)
    with pytest.raises(RequestError, match="no turn"):
        turn(sessions, "e", [1], [], rid="a")


def test_a_context_past_the_capacity_is_refused() -> None:
    sessions, _ = opened(capacity=4)
    turn(sessions, "a", [1, 2], [3])
    with pytest.raises(RequestError, match="would have 5 tokens; its capacity is 4"):
        turn(sessions, "b", [4, 5], [], rid="a")


def test_a_session_is_its_owners_and_closes_when_nothing_is_asked() -> None:
    sessions, clock = opened(timeout_s=10.0)
    with pytest.raises(RequestError, match="no open session"):
        sessions.go_on("other", SessionParams("s"))
    with pytest.raises(RequestError, match="is open"):
        sessions.open("me", name="s", capacity=1, timeout_s=None)
    sessions.open("other", name="s", capacity=1, timeout_s=None)
    clock.now_s = 9.0
    assert isinstance(sessions.go_on("me", SessionParams("s")), Continuation)
    clock.now_s = 18.0
    assert isinstance(sessions.go_on("me", SessionParams("s")), Continuation)
    clock.now_s = 29.0
    with pytest.raises(RequestError, match="no open session"):
        sessions.go_on("me", SessionParams("s"))
    assert len(sessions) == 1
    sessions.close("other", "s")
    with pytest.raises(RequestError, match="no open session"):
        sessions.close("other", "s")


def test_sessions_are_bounded_in_number_turns_and_tokens(monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 2)
    monkeypatch.setattr(module, "MAX_TURNS", 3)
    monkeypatch.setattr(module, "MAX_SESSION_TOKENS", 50)
    sessions, _ = opened()
    sessions.open("me", name="t", capacity=100, timeout_s=None)
    with pytest.raises(RequestError, match="2 sessions are open"):
        sessions.open("me", name="u", capacity=100, timeout_s=None)
    for name in "abc":
        turn(sessions, name, [1], [2])
    with pytest.raises(RequestError, match="full"):
        turn(sessions, "d", [1], [2])
    turn(sessions, "e", [1] * 60, [2], replace=True)
    with pytest.raises(RequestError, match="full"):
        turn(sessions, "f", [1], [2])
