"""Who gets in, how many, and how the server ends."""

import logging
import socket
import threading
import time

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.errors import ConfigError
from headstock.server.http.gate import OPEN_PATHS
from headstock.server.http.listen import listen
from headstock.server.keys import read_keys
from headstock.wire.steps import PageGroup, RunnerLimits
from tests.server.conftest import Served

KEYS = ["first-key-000", "second-key-00"]


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# ours\n{KEYS[1]}\n")
    settings = ServerSettings(port=0, api_keys=[KEYS[0]], api_key_file=str(path))
    with Served(settings=settings) as server:
        yield server


def test_every_route_but_the_probes_needs_a_key(locked):
    routes = [
        (path, method)
        for path, operations in locked.app.openapi()["paths"].items()
        for method in operations
    ]
    assert len(routes) > 20
    for path, method in [*routes, ("/openapi.json", "get"), ("/nowhere", "get")]:
        answer = httpx.request(method, locked.url + path.replace("{name}", "echo"))
        if path in OPEN_PATHS:
            assert answer.status_code == 200, path
        else:
            assert answer.status_code == 401, path
            assert "The API key is missing or wrong." in answer.text  # in each protocol's envelope


@pytest.mark.parametrize("key", KEYS)
def test_each_key_opens(locked, key):
    headers = {"Authorization": f"Bearer {key}"}
    assert locked.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x", "Bearer é"]
)
def test_nothing_else_opens(locked, header):
    headers = {"Authorization": header.encode()}
    assert locked.get("/v1/models", headers=headers).status_code == 401


def test_holders_of_different_keys_share_no_cached_prefixes(locked):
    for key in KEYS:
        locked.post("/generate", {"text": "a"}, headers={"Authorization": f"Bearer {key}"})
    submits = [m for m in locked.engine.seen if type(m).__name__ == "Submit"]
    first, second = (submit.namespace for submit in submits[-2:])
    assert first
    assert first != second


def test_no_key_shows_anywhere(locked):
    headers = {"Authorization": f"Bearer {KEYS[0]}"}
    for path in ("/server_info", "/metrics", "/model_info", "/openapi.json"):
        text = locked.get(path, headers=headers).text
        assert not any(key in text for key in KEYS)


def test_a_short_or_missing_key_file_is_the_operators_error(tmp_path):
    with pytest.raises(ConfigError, match="3 characters"):
        read_keys(ServerSettings(api_keys=["abc"]))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(ServerSettings(api_key_file=str(tmp_path / "none")))


def test_a_full_queue_answers_429_with_retry_after():
    one_slot = RunnerLimits(1, 256, 512, 1000, 1, [PageGroup("full", 16, 1024, 100)])
    with Served(engine={"step_s": 0.05, "limits": one_slot}, max_live=2) as server:
        threads = [
            threading.Thread(
                target=server.post,
                args=("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 20}}),
            )
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        while server.call(lambda: server.frontdoor.num_live) < 3:
            time.sleep(0.01)
        begun = time.monotonic()
        answer = server.post("/v1/completions", {"prompt": "x"})
        assert time.monotonic() - begun < 0.5
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        for thread in threads:
            thread.join()
        assert server.post("/v1/completions", {"prompt": "x", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("is_streamed", [False, True])
def test_the_engines_own_refusal_is_a_429_even_for_a_stream(is_streamed):
    with Served(engine={"max_waiting": 0}) as server:
        answer = server.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "stream": is_streamed},
        )
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "3"
        assert answer.json()["error"]["type"] == "rate_limit_error"


def test_small_writes_leave_at_once():
    with listen(ServerSettings(port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # else asyncio leaves Nagle's algorithm on


def test_a_taken_port_is_the_operators_error():
    with listen(ServerSettings(port=0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            listen(ServerSettings(port=port))


def stream_lines(server, body, lines):
    with httpx.stream("POST", server.url + "/generate", json=body, timeout=20) as answer:
        lines += [line for line in answer.iter_lines() if line]


def test_streams_go_on_through_a_drain_and_new_requests_do_not():
    settings = ServerSettings(port=0, drain_timeout_s=10.0)
    with Served(engine={"step_s": 0.01}, settings=settings) as server:
        lines = []
        body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 60}}
        thread = threading.Thread(target=stream_lines, args=(server, body, lines))
        thread.start()
        while len(lines) < 3 and not server.call(lambda: server.frontdoor.num_live):
            time.sleep(0.01)
        server.loop.call_soon_threadsafe(server.stop.set)
        time.sleep(0.05)
        assert server.get("/ready").status_code == 503
        refused = server.post("/generate", {"text": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        thread.join(10)
        assert lines[-1] == "data: [DONE]"
        assert '"type":"length"' in lines[-2]


def test_streams_that_outlast_the_drain_end_with_an_error():
    settings = ServerSettings(port=0, drain_timeout_s=0.2)
    with Served(engine={"step_s": 0.02}, settings=settings) as server:
        lines = []
        body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 400}}
        thread = threading.Thread(target=stream_lines, args=(server, body, lines))
        thread.start()
        while not server.call(lambda: server.frontdoor.num_live):
            time.sleep(0.01)
        server.loop.call_soon_threadsafe(server.stop.set)
        thread.join(5)
        assert lines[-1] == "data: [DONE]"
        assert '"code":"server_draining"' in lines[-2]
        assert '"retryable":true' in lines[-2]


def test_probes_fill_no_log(caplog):
    with caplog.at_level(logging.DEBUG), Served() as server:
        for path in ("/health", "/metrics", "/v1/models"):
            assert server.get(path).status_code == 200
    levels = {r.getMessage(): r.levelno for r in caplog.records if r.name != "httpx"}
    assert levels["GET /health 200"] == levels["GET /metrics 200"] == logging.DEBUG
    assert levels["GET /v1/models 200"] == logging.INFO
