"""Sessions, pauses and decisions over HTTP."""

from __future__ import annotations

import math
import time

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.wire.messages import Pause, Resume, Started, Submit
from tests.server.conftest import Served


@pytest.fixture
def server():
    with Served() as running:
        yield running


def prompts(server: Served) -> list[str]:
    """Return the texts of the prompts that the engine was sent."""
    seen = server.call(lambda: list(server.engine.seen))
    ids = [message.prompt_ids.tolist() for message in seen if isinstance(message, Submit)]
    return [server.tokenizer.decode(each) for each in ids]


def say(server: Served, text: str, session: str, rid: str | None = None, **more):
    body = {
        "text": text,
        "sampling_params": {"max_new_tokens": 2},
        "session_params": {"id": session, "rid": rid, **more.pop("session_params", {})},
    }
    return server.post("/generate", {**body, **more})


def test_a_session_sends_on_what_was_said_before(server):
    session = server.post("/open_session", {"capacity_of_str_len": 100}).json()
    first = say(server, "abc", session).json()
    assert first["text"] == "ab"
    second = say(server, "XY", session, first["meta_info"]["id"]).json()
    assert second["meta_info"]["prompt_tokens"] == 7
    with server_stream(server, session, second["meta_info"]["id"]) as answer:
        answer.read()
    assert prompts(server) == ["abc", "abcabXY", "abcabXYab!"]
    third = say(server, "?", session, "streamed").json()
    assert third["meta_info"]["prompt_tokens"] == 13
    assert server.post("/close_session", {"session_id": session}).status_code == 200
    refused = say(server, "x", session)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "session_params.id"


CHAT = "/v1/chat/completions"


def ask(server, text: str, session: str, turn: str | None = None, **more):
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
    return server.post(CHAT, {**body, "session_params": {"id": session, "rid": turn}, **more})


def test_chats_and_prompts_go_on_in_one_session(server):
    alone = server.post(CHAT, {"messages": [{"role": "user", "content": "XY"}], "max_tokens": 2})
    session = server.post("/open_session", {"capacity_of_str_len": 200}).json()
    first = ask(server, "abc", session).json()
    second = ask(server, "XY", session, first["id"])
    *_, begin, whole = prompts(server)
    drawn = first["choices"][0]["message"]["content"]
    told = second.json()["usage"]["prompt_tokens"]
    assert told == first["usage"]["total_tokens"] + alone.json()["usage"]["prompt_tokens"]
    assert whole == begin + drawn + prompts(server)[0]
    streamed = ask(server, "?", session, second.json()["id"], stream=True, rid="third")
    assert streamed.text.endswith("data: [DONE]\n\n")
    body = {"prompt": "zz", "max_tokens": 1, "session_params": {"id": session, "rid": "third"}}
    fourth = server.post("/v1/completions", body)
    assert fourth.status_code == 200, fourth.text
    assert prompts(server)[-1].startswith(whole)
    assert prompts(server)[-1].endswith("zz")
    assert say(server, "!", session, fourth.json()["id"]).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (CHAT, {"messages": [], "n": 2}, "session_params"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "session_params"),
        ("/v1/completions", {"prompt": "a", "session_params": {"id": "t"}}, "session_params.id"),
        (CHAT, {"messages": [], "session_params": {"id": 5}}, "session_params"),
        ("/invocations", {"messages": []}, "session_params"),
    ],
)
def test_what_a_session_cannot_do_on_these_routes_is_refused_by_name(server, path, body, field):
    server.post("/open_session", {"capacity_of_str_len": 100, "session_id": "s"})
    if body.get("messages") == []:
        body = body | {"messages": [{"role": "user", "content": "a"}]}
    answer = server.post(path, {"session_params": {"id": "s"}} | body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


def server_stream(server, session, rid):
    body = {
        "text": "!",
        "stream": True,
        "rid": "streamed",
        "sampling_params": {"max_new_tokens": 2},
        "session_params": {"id": session, "rid": rid},
    }
    return httpx.stream("POST", server.url + "/generate", json=body, timeout=20)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"text": ["a", "b"]}, "session_params"),
        ({"sampling_params": {"n": 2}}, "session_params"),
        ({"session_params": {"id": "s", "rid": "none"}}, "session_params.rid"),
        ({"session_params": {"id": "t"}}, "session_params.id"),
        ({"session_params": {"id": "s", "place": 1}}, "session_params"),
    ],
)
def test_what_a_session_cannot_do_is_refused_by_name(server, more, field):
    server.post("/open_session", {"capacity_of_str_len": 100, "session_id": "s"})
    answer = server.post("/generate", {"text": "a", "session_params": {"id": "s"}, **more})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field


def test_a_session_opened_twice_is_refused(server):
    body = {"capacity_of_str_len": 100, "session_id": "s"}
    assert server.post("/open_session", body).json() == "s"
    again = server.post("/open_session", body)
    assert again.status_code == 400
    assert again.json()["error"]["param"] == "session_id"


def test_offline_and_batches_refuse_sessions(server):
    body = {"instances": [{"text": "a", "session_params": {"id": "s"}}]}
    answer = server.post("/predict", body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "instances[0].session_params"


def test_requests_wait_for_the_end_of_a_pause(server):
    assert server.post("/pause_generation", {"mode": "in_place"}).json()["status"] == "ok"
    assert server.get("/ping").status_code == 200, "a paused server is well"
    assert server.get("/v1/loads").json()["loads"][0]["is_paused"] is True
    body = {"text": "a", "sampling_params": {"max_new_tokens": 1}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + "/generate", json=body, timeout=0.3)
    assert server.post("/continue_generation").json()["status"] == "ok"
    assert server.post("/generate", {"text": "a"}).status_code == 200
    seen = [m for m in server.engine.seen if isinstance(m, Pause | Resume)]
    assert [type(m) for m in seen] == [Pause, Resume]


def test_an_engine_that_starts_during_a_pause_is_paused(server):
    server.post("/pause_generation", {"mode": "in_place"})
    started = Started(limits=server.engine.limits)
    server.call(lambda: server.engine.inbox.put_nowait([started]))
    deadline = time.monotonic() + 20
    while len([m for m in server.engine.seen if isinstance(m, Pause)]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.post("/continue_generation")


def test_an_unknown_mode_of_pausing_is_refused(server):
    answer = server.post("/pause_generation", {"mode": "nap"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "mode"


def test_pausing_needs_the_admin_role():
    keys = ["user-key-0123456789", "admin:admin-key-0123456789"]
    with Served(settings=ServerSettings(port=0, api_keys=keys)) as locked:
        assert locked.post("/pause_generation", {}).status_code == 401


QUESTIONS = [
    {
        "id": "c",
        "type": "choice",
        "question": "What?",
        "options": [{"name": "pet"}, {"name": "car"}],
    },
    {"id": "s", "type": "score", "question": "How much?", "levels": ["little", "some", "much"]},
]


def test_decisions_are_shares_of_the_labels_probabilities(server):
    answer = server.post("/v1/decisions", {"input": {"a": 1}, "questions": QUESTIONS}).json()
    # The engine says -9 of every asked id.
    assert answer["answers"]["c"] == {
        "type": "choice",
        "probabilities": {"pet": 0.5, "car": 0.5},
        "label_mass": pytest.approx(2 * math.exp(-9)),
        "choice": "pet",
    }
    assert answer["answers"]["s"]["score"] == pytest.approx(1.0)
    first, second = prompts(server)
    assert '{"a":1}' in first
    assert "A. pet\nB. car" in first
    assert "0. little\n1. some\n2. much" in second
    submits = [m for m in server.engine.seen if isinstance(m, Submit)]
    assert submits[0].asked_ids == [ord("A") + 3, ord("B") + 3]
    assert submits[1].asked_ids == [ord("0") + 3, ord("1") + 3, ord("2") + 3]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": "", "questions": QUESTIONS}, "input"),
        ({"input": "a", "questions": QUESTIONS * 2}, "questions"),
        ({"input": "a", "questions": [{**QUESTIONS[0], "options": None}]}, "questions[0].options"),
        (
            {"input": "a", "questions": [{**QUESTIONS[0], "levels": ["a", "b"]}]},
            "questions[0].levels",
        ),
        (
            {"input": "a", "questions": [{"id": "y", "type": "yes_no", "question": "?"}]},
            "questions",
        ),
        ({"input": "a", "questions": QUESTIONS, "model": "other"}, "model"),
    ],
)
def test_decisions_that_cannot_be_made_name_the_field(server, body, field):
    answer = server.post("/v1/decisions", body)
    assert answer.status_code in (400, 404), answer.text
    assert answer.json()["error"]["param"] == field
