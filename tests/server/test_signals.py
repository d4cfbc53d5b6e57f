"""Signals to a server process: the first one drains, the second one does not wait."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

ROOT = str(Path(__file__).parents[2])
PROGRAM = (
    f"import sys; sys.path.insert(0, {ROOT!r}); "
    "from tests.server.echo_server import main; main(*sys.argv[1:])"
)


@contextlib.contextmanager
def server(step_s, drain_s):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(step_s), str(drain_s)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def stream(url, lines):
    body = {"text": "x", "stream": True, "sampling_params": {"max_new_tokens": 100}}
    with httpx.stream("POST", url + "/generate", json=body, timeout=20) as answer:
        for line in answer.iter_lines():
            lines.append(line)


def streaming(url, count):
    """Start ``count`` streams and return them once all have a token."""
    streams = [[] for _ in range(count)]
    threads = [threading.Thread(target=stream, args=(url, lines)) for lines in streams]
    for thread in threads:
        thread.start()
    while not all(streams):
        time.sleep(0.01)
    return streams, threads


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_end_and_exits_cleanly(kind):
    with server(0.01, 20) as (process, url):
        streams, threads = streaming(url, 8)
        process.send_signal(kind)
        time.sleep(0.1)
        assert httpx.get(url + "/ready").status_code == 503
        for thread in threads:
            thread.join(10)
        assert all('"type":"length"' in "".join(lines) for lines in streams)
        assert process.wait(5) == 0


def test_the_deadline_of_the_drain_holds():
    with server(0.2, 0.5) as (process, url):
        streams, threads = streaming(url, 4)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(5) == 0
        assert time.monotonic() - sent < 3.5
        for thread in threads:
            thread.join(2)
        assert all('"server_draining"' in "".join(lines) for lines in streams)


def test_a_second_signal_does_not_wait():
    with server(0.2, 30) as (process, url):
        _, threads = streaming(url, 2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(5) == 0
        assert time.monotonic() - sent < 2
        for thread in threads:
            thread.join(2)
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as again:  # the port can be used again at once
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind((host, int(port)))
