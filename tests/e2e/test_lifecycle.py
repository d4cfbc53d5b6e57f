"""What becomes of streams when the engine's process dies, and when the server is to end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.e2e.served import SMALL, Served, served, wait_for

pytestmark = pytest.mark.chaos

STREAMS = 6


@dataclass
class Stream(threading.Thread):
    """A client that takes a stream to its end."""

    url: str
    sampling: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    ended_s: float = 0.0
    failure: str = ""

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        ask = {"text": "Once upon a time", "stream": True}
        ask |= {"sampling_params": {"ignore_eos": True, **self.sampling}}
        try:
            with httpx.stream("POST", f"{self.url}/generate", json=ask, timeout=120) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {"):
                        self.events.append(json.loads(line[6:]))
        except httpx.HTTPError as error:
            self.failure = repr(error)
        self.ended_s = time.monotonic()


def start(server: Served, sampling: list[dict[str, Any]]) -> list[Stream]:
    """Start streams and return them once each has tokens."""
    streams = [Stream(server.url, each) for each in sampling]
    for stream in streams:
        stream.start()
    for stream in streams:
        wait_for(lambda stream=stream: stream.events, 30, "a first token")
    return streams


@pytest.fixture(scope="module")
def after_a_kill(the_server: Served) -> dict[str, Any]:
    """Kill the engine under load; return what was seen."""
    wait_for(the_server.is_ready, 60, "readiness")
    sampling = [
        {"max_new_tokens": 300, "sampling_seed": 7 + index, "temperature": 0.8 * (index % 2)}
        for index in range(STREAMS)
    ]
    alone = start(the_server, sampling)
    for stream in alone:
        stream.join(120)
    streams = start(the_server, sampling)
    pid = the_server.engine_pid
    killed_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not the_server.is_ready(), 5, "a server that is not ready")
    refused = the_server.post("/generate", text="a", sampling_params={"max_new_tokens": 1})
    for stream in streams:
        stream.join(120)
    wait_for(the_server.is_ready, 60, "a server that is ready again")
    return {
        "alone": alone,
        "streams": streams,
        "killed_s": killed_s,
        "refused": refused,
        "pid": pid,
    }


def test_streams_go_on_and_draw_what_they_would_have_drawn(after_a_kill: dict[str, Any]) -> None:
    for alone, stream in zip(after_a_kill["alone"], after_a_kill["streams"], strict=True):
        assert not stream.failure
        assert stream.ended_s > after_a_kill["killed_s"]
        last = stream.events[-1]
        assert last["meta_info"]["finish_reason"] == {"type": "length", "length": 300}
        assert last["output_ids"] == alone.events[-1]["output_ids"]
        assert last["text"] == alone.events[-1]["text"]


def test_nothing_is_emitted_twice(after_a_kill: dict[str, Any]) -> None:
    for stream in after_a_kill["streams"]:
        for event, after in zip(stream.events, stream.events[1:], strict=False):
            assert after["text"].startswith(event["text"])
            assert after["output_ids"][: len(event["output_ids"])] == event["output_ids"]


def test_requests_meanwhile_are_asked_to_come_back(after_a_kill: dict[str, Any]) -> None:
    refused = after_a_kill["refused"]
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["code"] == "engine_unavailable"


def test_another_engine_serves(after_a_kill: dict[str, Any], the_server: Served) -> None:
    assert the_server.engine_pid != after_a_kill["pid"]
    answer = the_server.post("/generate", text="a", sampling_params={"max_new_tokens": 3})
    assert len(answer.json()["output_ids"]) == 3
    state = the_server.idle_state()
    assert state["free_pages"] + state["cached_pages"] == state["total_pages"]


def test_the_operator_is_told(after_a_kill: dict[str, Any], the_server: Served) -> None:
    assert "ended by SIGKILL" in the_server.log
    wait_for(lambda: "The engine is back." in the_server.log, 5, "the banner's line")


def test_sigterm_lets_streams_end_and_takes_no_more(model: str) -> None:
    with served(model, *SMALL) as server:
        streams = start(server, [{"max_new_tokens": 120}] * STREAMS)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not server.is_ready(), 5, "a server that is not ready")
        refused = server.post("/generate", text="a", sampling_params={"max_new_tokens": 1})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_draining"
        assert server.process.wait(30) == 0
    for stream in streams:
        stream.join(5)
        assert not stream.failure
        assert stream.events[-1]["meta_info"]["finish_reason"]["type"] == "length"
        assert len(stream.events[-1]["output_ids"]) == 120


def test_a_taken_port_is_said_before_anything_is_loaded(the_server: Served, model: str) -> None:
    import subprocess
    import sys

    port = the_server.url.rpartition(":")[2]
    command = [sys.executable, "-m", "headstock.cli", "serve", model, "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert f"Cannot listen on 127.0.0.1:{port}" in done.stderr
