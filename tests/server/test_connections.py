"""No client keeps a connection that it makes no use of, and none keeps all of them."""

import contextlib
import socket
import threading
import time

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.server.http.connections import CountedProtocol
from tests.server.conftest import Served

pytestmark = pytest.mark.chaos

SETTINGS = ServerSettings(port=0, drain_timeout_s=1.0)
LIVE = b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n"


def connect(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=5)


def read_answer(connection):
    data = b""
    while b'"}' not in data:
        more = connection.recv(4096)
        if not more:
            break
        data += more
    return data


def is_closed(connection, within_s=3.0):
    connection.settimeout(within_s)
    try:
        return connection.recv(4096) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr("headstock.server.http.protocol.HEADER_DEADLINE_S", 0.3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    "begun",
    [b"GET /live HTTP/1.1\r\nHost: x\r\n", b"G", b"\r\n", b"GET /live HTTP/1.1\r\nx: y"],
)
def test_the_headers_of_a_second_request_are_not_waited_for_either(begun):
    with Served(settings=SETTINGS) as server, connect(server) as connection:
        connection.sendall(LIVE)
        assert b"200 OK" in read_answer(connection)
        connection.sendall(begun)
        assert is_closed(connection)


@pytest.mark.usefixtures("hasty")
def test_a_second_request_that_comes_whole_is_served_and_an_idle_connection_is_kept():
    with Served(settings=SETTINGS) as server, connect(server) as connection:
        for _ in range(3):
            connection.sendall(LIVE)
            assert b"200 OK" in read_answer(connection)
            time.sleep(0.5)


@pytest.mark.usefixtures("hasty")
def test_the_rest_of_a_body_that_nobody_reads_is_not_waited_for():
    with Served(settings=SETTINGS) as server, connect(server) as connection:
        head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n"
        connection.sendall(head)
        assert b"404" in read_answer(connection)
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            while time.monotonic() - begun < 3:
                connection.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - begun < 2.5


@pytest.mark.usefixtures("hasty")
def test_an_answer_is_not_cut_by_half_of_a_pipelined_request():
    with (
        Served(engine={"step_s": 0.05}, settings=SETTINGS) as server,
        connect(server) as connection,
    ):
        body = b'{"text":"x","sampling_params":{"max_new_tokens":20}}'
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body + b"GET /live HTT"
        )
        answer = connection.recv(4096)
        assert b"200 OK" in answer
        assert is_closed(connection)


def test_a_reader_that_stops_for_ever_is_cut_off(monkeypatch):
    monkeypatch.setattr("headstock.server.http.connections.SWEEP_S", 0.1)
    monkeypatch.setattr("headstock.server.http.connections.WRITE_DEADLINE_S", 0.5)
    lost, forget = threading.Event(), CountedProtocol.connection_lost

    def lose(protocol, error):
        forget(protocol, error)
        lost.set()

    monkeypatch.setattr(CountedProtocol, "connection_lost", lose)
    with Served(settings=SETTINGS) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.url.removeprefix("http://").split(":")
        connection.connect((host, int(port)))
        prompt = "x" * 400
        body = (
            b'{"text":["%s"],"return_logprob":true,"top_logprobs_num":100,"logprob_start_len":0,'
            b'"sampling_params":{"n":16,"max_new_tokens":100}}' % prompt.encode()
        )
        connection.sendall(
            b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n" % len(body) + body
        )
        assert lost.wait(60)
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(65536):
                data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        declared = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        assert declared > 4_000_000
        assert len(rest) < declared
        connection.close()


def test_a_slow_reader_that_reads_is_not_cut_off(monkeypatch):
    monkeypatch.setattr("headstock.server.http.connections.SWEEP_S", 0.1)
    monkeypatch.setattr("headstock.server.http.connections.WRITE_DEADLINE_S", 0.6)
    with Served(engine={"tokens_per_step": 4}, settings=SETTINGS) as server:
        body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 400}}
        size = 0
        with httpx.stream("POST", server.url + "/generate", json=body, timeout=20) as answer:
            for chunk in answer.iter_raw(4096):
                size += len(chunk)
                time.sleep(0.02)
        assert chunk.endswith(b"[DONE]\n\n")


def test_past_the_limit_idle_connections_make_room():
    settings = ServerSettings(port=0, drain_timeout_s=1.0, max_connections=4)
    with Served(settings=settings) as server, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(server)) for _ in range(4)]
        for connection in idle:
            connection.sendall(LIVE)
            assert b"200 OK" in read_answer(connection)
        for _ in range(3):
            assert server.get("/v1/models").status_code == 200


def test_past_the_limit_only_probes_are_answered():
    settings = ServerSettings(port=0, drain_timeout_s=1.0, max_connections=4)
    with Served(settings=settings) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            busy = stack.enter_context(connect(server))
            busy.sendall(b"GET /live HTTP/1.1\r\n")
        time.sleep(0.2)
        for path in ("/live", "/ready", "/health"):
            assert server.get(path).status_code == 200
        refused = server.get("/v1/models")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert refused.json()["error"]["code"] == "too_many_connections"
        more = [stack.enter_context(connect(server)) for _ in range(20)]
        assert b"too_many_connections" in read_answer(more[-1])
