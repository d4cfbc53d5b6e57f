"""Loading other weights and recording profiles over HTTP."""

from __future__ import annotations

import threading
import time

import pytest

from headstock.config.schema import ServerSettings
from headstock.wire.messages import LoadWeights, Started, StartProfile, UpkeepReply
from tests.server.conftest import Served

GENERATE = {"text": "ab", "sampling_params": {"max_new_tokens": 2}}
KEYS = ["ops:admin:admin-key-of-many", "ann:user:user-key-of-many"]


@pytest.fixture
def server():
    with Served() as server:
        yield server


def load(server: Served, path: str = "/new", **more: object):
    return server.post("/update_weights_from_disk", {"model_path": path, **more})


def loads(server: Served) -> list[LoadWeights]:
    return [message for message in server.engine.seen if isinstance(message, LoadWeights)]


def version_of(server: Served) -> str:
    return server.post("/generate", GENERATE).json()["meta_info"]["weight_version"]


def test_weights_are_loaded_and_their_version_is_said(server):
    assert version_of(server) == "default"
    answer = load(server, weight_version="7")
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True, "message": "The weights are loaded.", "num_paused_requests": 0,
    }  # fmt: skip
    assert version_of(server) == "7"
    info = server.get("/model_info").json()
    assert (info["model_path"], info["weight_version"]) == ("/new", "7")
    assert load(server, "/newer").status_code == 200
    assert server.get("/model_info").json()["weight_version"] == "7"


def test_the_version_can_be_changed_alone(server):
    answer = server.post("/update_weight_version", {"new_version": "8"})
    assert answer.json()["new_version"] == "8"
    assert version_of(server) == "8"
    assert not loads(server)


def test_weights_that_do_not_fit_change_nothing(server):
    answer = load(server, "/bad", weight_version="9")
    assert answer.status_code == 400
    body = answer.json()
    assert (body["success"], body["message"]) == (False, "It is bad. Take a good one.")
    assert body["error"]["param"] == "model_path"
    assert version_of(server) == "default"


@pytest.mark.parametrize(
    ("more", "field"),
    [({"flush_cache": False}, "flush_cache"), ({"load_format": "remote"}, "load_format")],
)
def test_what_is_not_done_is_refused_by_name(server, more, field):
    answer = load(server, **more)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    assert not loads(server)


def in_background(server: Served, path: str) -> tuple[threading.Thread, list]:
    answers: list = []
    thread = threading.Thread(target=lambda: answers.append(load(server, path)))
    thread.start()
    deadline = time.monotonic() + 10
    while not loads(server) and time.monotonic() < deadline:
        time.sleep(0.01)
    return thread, answers


def test_two_loads_at_once_are_refused(server):
    thread, answers = in_background(server, "/slow")
    second = load(server)
    assert second.status_code == 400
    assert "being loaded" in second.json()["message"]
    done = [UpkeepReply(call=server.engine.loading.call)]
    server.call(lambda: server.engine.inbox.put_nowait(done))
    thread.join(10)
    assert answers[0].status_code == 200
    assert len(loads(server)) == 1


def restart(server: Served) -> None:
    server.call(lambda: server.engine.inbox.put_nowait([Started(limits=server.engine.limits)]))
    server.get("/model_info")


def test_a_new_engine_loads_the_weights_that_the_one_before_had(server):
    load(server, "/new", weight_version="7")
    restart(server)
    assert [(one.call, one.path) for one in loads(server)[1:]] == [(0, "/new")]
    assert version_of(server) == "7"


def test_weights_that_a_new_engine_cannot_load_are_not_said_to_be_there(server):
    load(server, "/new", weight_version="7")
    lost = [UpkeepReply(call=0, problem="They are gone.")]
    server.call(lambda: server.engine.inbox.put_nowait(lost))
    server.get("/model_info")
    assert version_of(server) == "default"
    assert server.get("/model_info").json()["model_path"] == "/nowhere"


def test_an_engine_that_dies_of_the_weights_has_those_before(server):
    thread, answers = in_background(server, "/slow")
    restart(server)
    thread.join(10)
    assert answers[0].status_code == 400
    assert "died while it loaded" in answers[0].json()["message"]
    assert len(loads(server)) == 1
    assert load(server).status_code == 200


def test_a_profile_is_started_and_stopped(server):
    body = {"output_dir": "/there", "num_steps": 5, "with_stack": True}
    answer = server.post("/start_profile", body)
    assert answer.json() == {
        "success": True, "message": "Steps are recorded.", "path": "/there/trace",
    }  # fmt: skip
    asked = [message for message in server.engine.seen if isinstance(message, StartProfile)]
    assert (asked[0].num_steps, asked[0].has_stacks, asked[0].has_shapes) == (5, True, False)
    assert server.post("/stop_profile").json()["num_steps"] == 3
    assert server.post("/start_profile").status_code == 200


def test_profiles_that_cannot_be_are_refused(server):
    full = server.post("/start_profile", {"output_dir": "/full"})
    assert (full.status_code, full.json()["error"]["message"]) == (
        400, "The disk is full. Make room.",
    )  # fmt: skip
    long = server.post("/start_profile", {"num_steps": 100_000})
    assert long.json()["error"]["param"] == "num_steps"


def test_they_need_the_admin_role():
    with Served(settings=ServerSettings(port=0, api_keys=KEYS)) as locked:
        for path in ("update_weights_from_disk", "update_weight_version"):
            assert ask(locked, path, "user") == 403
            assert ask(locked, path, "admin") == 400
        for path in ("start_profile", "stop_profile"):
            assert ask(locked, path, "user") == 403
            assert ask(locked, path, "admin") == 200


def ask(server: Served, path: str, role: str) -> int:
    headers = {"authorization": f"Bearer {role}-key-of-many"}
    return server.post(f"/{path}", {}, headers=headers).status_code
