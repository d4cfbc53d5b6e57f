"""A client that leaves, whenever it does, leaves nothing behind."""

import asyncio
import contextlib
import json
import random
import socket
import time

import pytest

from headstock.config.schema import ServerSettings
from headstock.server.protocols import native_bodies
from tests.server.conftest import Served

pytestmark = pytest.mark.chaos

SETTINGS = ServerSettings(port=0, drain_timeout_s=1.0)


def request_bytes(body):
    data = json.dumps(body).encode()
    head = b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(data) + data


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def answer_of(connection):
    """Return all bytes of one whole answer of a connection."""
    data = b""
    while not data.endswith(b"}}"):
        data += connection.recv(65536)
    return data


def wait_until(server, check, seconds=3.0):
    deadline = time.monotonic() + seconds
    while not server.call(check):
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


def test_a_storm_of_disconnects_frees_everything():
    rng = random.Random(0)
    with Served(engine={"step_s": 0.002}, settings=SETTINGS) as server:
        open_ones = []
        for index in range(200):
            body = {
                "text": "x" * rng.randrange(1, 40),
                "stream": rng.random() < 0.7,
                "sampling_params": {"max_new_tokens": 400, "n": rng.choice([1, 1, 3])},
            }
            data = request_bytes(body)
            connection = connect(server)
            # Some leave amid their own request, some before the first byte, some later.
            connection.sendall(data if index % 5 else data[: rng.randrange(len(data))])
            open_ones.append(connection)
            if len(open_ones) > 20:
                connection = open_ones.pop(rng.randrange(len(open_ones)))
                if rng.random() < 0.5:
                    connection.settimeout(0.02)
                    with contextlib.suppress(TimeoutError):
                        connection.recv(rng.randrange(1, 600))
                connection.close()
        for connection in open_ones:
            connection.close()
        wait_until(server, lambda: server.frontdoor.num_live == 0)
        wait_until(server, lambda: not server.engine.running)
        assert server.call(lambda: server.frontdoor._names._ids) == {}
        assert server.call(lambda: server.frontdoor._places.num_live) == 0
        assert server.post("/generate", {"text": "a"}).status_code == 200
    assert server.left_over == []


def test_an_abort_follows_a_disconnect_at_once():
    with Served(engine={"step_s": 0.01}, settings=SETTINGS) as server:
        connection = connect(server)
        connection.sendall(request_bytes({"text": "x", "sampling_params": {"max_new_tokens": 400}}))
        wait_until(server, lambda: len(server.engine.running) == 1)
        connection.close()
        begun = time.monotonic()
        wait_until(server, lambda: not server.engine.running)
        assert time.monotonic() - begun < 0.5


def test_requests_end_by_their_exact_name_only():
    with Served(engine={"step_s": 0.02}, settings=SETTINGS) as server:
        connections = []
        for name in ("req-1", "req-10"):
            connection = connect(server)
            body = {"text": "x", "rid": name, "sampling_params": {"max_new_tokens": 60}}
            connection.sendall(request_bytes(body))
            connections.append(connection)
        wait_until(server, lambda: len(server.engine.running) == 2)
        assert server.post("/abort_request", {"rid": "req"}).json() == {"aborted": False}
        assert server.post("/abort_request", {"rid": "req-1"}).json() == {"aborted": True}
        assert b'"type":"abort"' in answer_of(connections[0])
        assert b'"type":"length"' in answer_of(connections[1])
        for connection in connections:
            connection.close()


def test_a_client_that_reads_too_slowly_is_dropped(monkeypatch):
    monkeypatch.setattr("headstock.server.generation.MAX_BACKLOG", 50)

    async def never_read(server):
        body = native_bodies.GenerateBody(text="x", sampling_params={"max_new_tokens": 400})
        call = native_bodies.read(body)
        generation = await server.frontdoor.generate(call.requests, is_streamed=True)
        while generation.error is None:
            await asyncio.sleep(0.01)
        return generation.error.code

    with Served(settings=SETTINGS) as server:
        code = asyncio.run_coroutine_threadsafe(never_read(server), server.loop).result(10)
        assert code == "slow_client"
        wait_until(server, lambda: not server.engine.running)
