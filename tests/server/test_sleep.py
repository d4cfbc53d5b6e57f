"""Sleep, and weights read back, over HTTP."""

from __future__ import annotations

import pytest

from headstock.config.schema import ServerSettings
from headstock.wire.messages import ReadWeight, Sleep, Started, Wake
from tests.server.conftest import Served

GENERATE = {"text": "ab", "sampling_params": {"max_new_tokens": 2}}
KEYS = ["ops:admin:admin-key-of-many", "ann:user:user-key-of-many"]
PAGES = {"tags": ["kv_cache"]}


@pytest.fixture
def server():
    with Served() as server:
        yield server


def told(server: Served, kind: type) -> list:
    return [message for message in server.engine.seen if isinstance(message, kind)]


@pytest.mark.parametrize(
    ("sleep", "body", "wake"),
    [
        ("/release_memory_occupation", PAGES, "/resume_memory_occupation"),
        ("/sleep?tags=kv_cache", None, "/wake_up"),
    ],
)
def test_a_server_that_sleeps_refuses_requests_until_it_is_woken(server, sleep, body, wake):
    assert server.get("/is_sleeping").json() == {"is_sleeping": False}
    answer = server.post(sleep, body)
    assert (answer.status_code, answer.json()["num_bytes"]) == (200, 4096), answer.text
    assert server.get("/is_sleeping").json() == {"is_sleeping": True}
    for probe in ("/ready", "/health"):
        assert server.get(probe).status_code == 503
    assert server.get("/live").status_code == 200
    refused = server.post("/generate", GENERATE)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "asleep"
    assert "retry-after" in refused.headers
    assert server.post("/continue_generation").status_code == 503
    assert server.post(wake).status_code == 200
    assert server.get("/ready").status_code == 200
    assert server.post("/generate", GENERATE).status_code == 200
    assert server.post("/continue_generation").status_code == 200
    assert (len(told(server, Sleep)), len(told(server, Wake))) == (1, 1)


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/release_memory_occupation", {"tags": ["weights"]}, "tags"),
        ("/release_memory_occupation", {"tags": ["cuda_graph"]}, "tags"),
        ("/release_memory_occupation", {"tags": ["all"]}, "tags"),
        ("/sleep?level=3", None, "level"),
        ("/sleep?tags=everything", None, "tags"),
        ("/wake_up?tags=all", None, "tags"),
    ],
)
def test_what_cannot_be_given_back_by_itself_is_refused_by_name(server, path, body, field):
    answer = server.post(path, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == field
    assert not told(server, Sleep)
    assert server.get("/ready").status_code == 200


@pytest.mark.parametrize(
    ("sleep", "body", "wake"),
    [
        ("/release_memory_occupation", None, "/resume_memory_occupation"),
        ("/release_memory_occupation", {"tags": ["weights", "kv_cache"]}, "/wake_up"),
        ("/sleep", None, "/wake_up"),
        ("/sleep?level=1", None, "/wake_up"),
        ("/sleep?level=2", None, "/wake_up?tags=kv_cache&tags=weights"),
    ],
)
def test_the_weights_go_with_the_engine_and_come_back_with_the_next(server, sleep, body, wake):
    assert server.post(sleep, body).status_code == 200
    assert server.get("/is_sleeping").json() == {"is_sleeping": True}
    assert server.get("/ready").status_code == 503
    assert server.get("/live").status_code == 200
    for path, asked in {
        "/generate": GENERATE,
        "/update_weights_from_disk": {"model_path": "/other"},
        "/get_weights_by_name": {"name": "norm.weight"},
        "/flush_cache": None,
    }.items():
        refused = server.post(path, asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "asleep"), path
    assert server.post(sleep, body).status_code == 200
    assert server.post(wake).status_code == 200
    assert server.get("/is_sleeping").json() == {"is_sleeping": False}
    assert server.post("/generate", GENERATE).status_code == 200
    assert not told(server, Sleep)


def test_pages_and_weights_go_and_come_back_one_by_one(server):
    for tag in ("kv_cache", "weights"):
        answer = server.post("/release_memory_occupation", {"tags": [tag]})
        assert answer.status_code == 200, answer.text
    assert server.post("/release_memory_occupation", PAGES).json()["num_bytes"] == 0
    early = server.post("/resume_memory_occupation", PAGES)
    assert (early.status_code, early.json()["error"]["param"]) == (400, "tags")
    woken = server.post("/resume_memory_occupation", {"tags": ["weights"]})
    assert woken.status_code == 200, woken.text
    assert server.get("/is_sleeping").json() == {"is_sleeping": True}
    assert len(told(server, Sleep)) == 2  # the new engine sleeps without pages
    assert server.post("/update_weights_from_disk", {"model_path": "/other"}).status_code == 200
    assert server.post("/generate", GENERATE).status_code == 503
    assert server.post("/resume_memory_occupation", PAGES).status_code == 200
    assert server.post("/generate", GENERATE).status_code == 200


def test_an_engine_that_does_not_start_again_leaves_the_server_asleep():
    with Served(engine={"cannot_start": True}) as server:
        server.post("/sleep")
        answer = server.post("/wake_up")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "wake_refused"
        assert "no room" in answer.json()["error"]["message"]
        assert server.get("/is_sleeping").json() == {"is_sleeping": True}
        assert server.post("/generate", GENERATE).json()["error"]["code"] == "asleep"
        server.call(lambda: setattr(server.engine, "cannot_start", False))
        assert server.post("/wake_up").status_code == 200
        assert server.post("/generate", GENERATE).status_code == 200


def test_an_engine_within_this_process_keeps_its_weights():
    class Within(Served):
        has_process = False

    with Within() as server:
        answer = server.post("/sleep")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "sleep_refused")
        assert server.post("/generate", GENERATE).status_code == 200


def test_weights_that_were_not_given_back_need_no_waking(server):
    server.post("/release_memory_occupation", PAGES)
    for path, body in {
        "/resume_memory_occupation": {"tags": ["weights"]},
        "/wake_up?tags=weights": None,
    }.items():
        assert server.post(path, body).status_code == 200
        assert server.get("/is_sleeping").json() == {"is_sleeping": True}
    assert server.post("/wake_up?tags=weights&tags=kv_cache").status_code == 200
    assert server.get("/is_sleeping").json() == {"is_sleeping": False}


def test_a_device_that_keeps_its_memory_stays_awake():
    with Served(engine={"cannot_sleep": True}) as server:
        answer = server.post("/release_memory_occupation", PAGES)
        assert answer.status_code == 400
        assert "keeps its memory" in answer.json()["error"]["message"]
        assert server.get("/is_sleeping").json() == {"is_sleeping": False}
        assert server.post("/generate", GENERATE).status_code == 200


def test_a_new_engine_sleeps_where_the_one_before_did(server):
    server.post("/release_memory_occupation", PAGES)
    server.call(lambda: server.engine.inbox.put_nowait([Started(limits=server.engine.limits)]))
    server.get("/model_info")
    assert [one.call for one in told(server, Sleep)][1:] == [0]
    assert server.get("/ready").status_code == 503
    assert server.post("/wake_up").status_code == 200
    server.call(lambda: server.engine.inbox.put_nowait([Started(limits=server.engine.limits)]))
    server.get("/model_info")
    assert len(told(server, Sleep)) == 2


def test_a_weight_is_read_back(server):
    body = {"name": "norm.weight", "truncate_size": 2}
    answer = server.post("/get_weights_by_name", body)
    assert answer.json() == [[0.0, 1.0], [2.0, 3.0]]
    assert told(server, ReadWeight)[0].num_rows == 2
    unknown = server.post("/get_weights_by_name", {"name": "other"})
    assert unknown.status_code == 400
    assert unknown.json()["error"]["param"] == "name"
    long = server.post("/get_weights_by_name", {"name": "norm.weight", "truncate_size": 5000})
    assert long.json()["error"]["param"] == "truncate_size"


def test_they_need_the_admin_role():
    with Served(settings=ServerSettings(port=0, api_keys=KEYS)) as locked:
        for path, body in {
            "/release_memory_occupation": PAGES,
            "/resume_memory_occupation": PAGES,
            "/sleep?tags=kv_cache": None,
            "/wake_up": None,
            "/get_weights_by_name": {"name": "norm.weight"},
        }.items():
            assert ask(locked, path, body, "user") == 403, path
            assert ask(locked, path, body, "admin") == 200, path


def ask(server: Served, path: str, body: dict | None, role: str) -> int:
    headers = {"authorization": f"Bearer {role}-key-of-many"}
    return server.post(path, body, headers=headers).status_code
