"""Slow clients, slow engines, and what is written down meanwhile."""

import functools
import logging
import socket
import threading
import time

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.observe.watchdog import Watchdog
from tests.server.conftest import Served

pytestmark = pytest.mark.chaos

SETTINGS = ServerSettings(port=0, drain_timeout_s=1.0)
HEAD = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nx: "])
def test_headers_that_never_come_are_not_waited_for(monkeypatch, begun):
    monkeypatch.setattr("headstock.server.http.protocol.HEADER_DEADLINE_S", 0.2)
    with Served(settings=SETTINGS) as server, connect(server) as connection:
        connection.sendall(begun)
        assert connection.recv(1) == b""


class Drips:
    """Clients that send a header's byte now and then, and come back when they are cut off.

    Args:
        server: Whose.
        count: Connections at a time.
    """

    def __init__(self, server, count):
        self.server = server
        self.is_over = False
        self.num_cut_off = 0
        self.connections = [self.begin() for _ in range(count)]
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_over = True
        self.thread.join()
        for each in self.connections:
            each.close()

    def begin(self):
        connection = connect(self.server)
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        connection.setblocking(False)
        return connection

    def run(self):
        while not self.is_over:
            for at, each in enumerate(self.connections):
                try:
                    each.send(b"x")
                    is_cut_off = each.recv(1) == b""
                except BlockingIOError:
                    is_cut_off = False
                except OSError:
                    is_cut_off = True
                if is_cut_off:
                    self.num_cut_off += 1
                    each.close()
                    self.connections[at] = self.begin()
            time.sleep(0.2)


def slowest_s(server, seconds):
    """Return how long the slowest of requests one after another took but for one in a hundred."""
    took_s = []
    end_s = time.monotonic() + seconds
    with httpx.Client(base_url=server.url, timeout=20) as client:
        while time.monotonic() < end_s:
            begin_s = time.monotonic()
            body = {"text": "ab", "sampling_params": {"max_new_tokens": 2}}
            assert client.post("/generate", json=body).status_code == 200
            took_s.append(time.monotonic() - begin_s)
    return sorted(took_s)[int(0.99 * len(took_s))]


@pytest.mark.parametrize(
    ("count", "seconds", "deadline_s"),
    [(100, 3.0, 1.0), pytest.param(500, 60.0, 10.0, marks=pytest.mark.slow)],
)
def test_many_slow_connections_are_cut_off_and_others_are_served(
    monkeypatch, count, seconds, deadline_s
):
    monkeypatch.setattr("headstock.server.http.protocol.HEADER_DEADLINE_S", deadline_s)
    with Served(settings=SETTINGS) as server:
        alone_s = slowest_s(server, min(seconds, 5.0))
        with Drips(server, count) as drips:
            beside_s = slowest_s(server, seconds)
        assert drips.num_cut_off >= count
        # The clients are in this process too, so twice as long is for a machine that is quiet.
        assert beside_s < 0.5 + 4 * alone_s
        assert server.post("/generate", {"text": "ab"}).status_code == 200


def test_a_body_that_never_comes_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("headstock.server.http.bodies.BODY_DEADLINE_S", 0.2)
    with Served(settings=SETTINGS) as server, connect(server) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_silent_stream_is_kept_open_by_comments(monkeypatch):
    monkeypatch.setattr("headstock.server.http.streaming.PING_S", 0.05)
    with Served(engine={"step_s": 0.4}, settings=SETTINGS) as server:
        body = {"text": "ab", "stream": True, "sampling_params": {"max_new_tokens": 2}}
        answer = server.post("/generate", body)
        assert ": ping\n\n" in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")


def test_what_falls_behind_is_joined(monkeypatch):
    monkeypatch.setattr("headstock.server.generation.COALESCE_FROM", 3)
    with Served(engine={"tokens_per_step": 20}, settings=SETTINGS) as server:
        body = {"prompt": "abcde", "stream": True, "max_tokens": 60}
        answer = server.post("/v1/completions", body)
        chunks = [line for line in answer.text.split("\n\n") if line.startswith("data: {")]
        assert len(chunks) <= 4
        assert '"finish_reason":"length"' in chunks[-1]


def test_a_silent_engine_makes_the_server_unready():
    with Served(settings=SETTINGS) as server:
        server.frontdoor.status.silence_limit_s = 0.1
        server.engine.task.cancel()
        time.sleep(0.2)
        answer = server.get("/health")
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert server.get("/live").status_code == 200


def test_words_of_requests_are_never_logged(caplog):
    canary = "CANARY-7f3a"
    with caplog.at_level(logging.INFO), Served(settings=SETTINGS) as server:
        headers = {"Authorization": f"Bearer {canary}"}
        for body in ({"text": canary}, {"text": canary, "sampling_params": {canary: 1}}):
            server.post("/generate", body, headers=headers)
        server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": canary}]})
        server.get("/" + canary)
        assert canary not in server.get("/metrics").text
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name != "httpx")
    assert "POST /generate 200" in ours
    assert canary not in ours


def test_an_event_loop_that_does_not_turn_is_written_about_with_what_holds_it(monkeypatch, caplog):
    quick = functools.partial(Watchdog, limit_s=0.2)
    monkeypatch.setattr("headstock.server.http.serve.Watchdog", quick)
    monkeypatch.setattr("headstock.server.http.serve.TURN_S", 0.05)
    with Served() as server:
        server.call(lambda: hold_up(1.0))
    written = [record.message for record in caplog.records if "has not turned" in record.message]
    assert any("The event loop has not turned" in each for each in written)
    assert any("in hold_up" in each for each in written)


def hold_up(seconds):
    time.sleep(seconds)
