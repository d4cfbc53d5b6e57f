"""What one client sends stops nobody else: the event loop goes on, memory is bounded."""

import asyncio
import contextlib
import gc
import socket
import threading
import time

import msgspec
import pytest

from tests.server.conftest import Served
from tests.unit.test_text_patterns import HOSTILE
from tests.unit.test_text_template import HOSTILE as TEMPLATES

LIMIT_S = 0.1
"""A request must not keep the event loop from turning for longer."""


@contextlib.contextmanager
def longest_stall(server):
    """Measure the most that this process computed while the server's loop did not turn. Seconds.

    In processor time: on the clock, other processes of the machine stall the loop too. It is all
    threads', since one that holds the interpreter's lock stalls the loop as well.
    """
    worst = [0.0]
    stopped = threading.Event()

    async def look():
        while not stopped.is_set():
            begun_s = time.process_time()
            await asyncio.sleep(0.005)
            worst[0] = max(worst[0], time.process_time() - begun_s)

    watching = asyncio.run_coroutine_threadsafe(look(), server.loop)
    gc.collect()
    gc.freeze()  # as a server does once it is up: what pytest holds is not looked through
    yield worst
    gc.unfreeze()
    stopped.set()
    watching.result(10)


def send(server, route, body):
    """Return the status and the JSON of an answer; what this costs here is next to nothing."""
    host, port = server.url.removeprefix("http://").split(":")
    head = (
        f"POST {route} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(head.encode())
        connection.sendall(body)
        answer = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("route", ["/generate", "/v1/completions"])
def test_a_hostile_pattern_is_refused_while_the_loop_turns(served, route, pattern):
    body = {"sampling_params": {"stop_regex": pattern}, "text": "x"}
    if route != "/generate":
        body = {"stop_regex": [pattern] * 4, "prompt": "x"}
    content = msgspec.json.encode(body)
    with longest_stall(served) as worst:
        status, answer = send(served, route, content)
    assert status == 400
    assert msgspec.json.decode(answer)["error"]["param"] == "stop_regex"
    assert worst[0] < LIMIT_S


@pytest.mark.parametrize("name", ["loops", "doubles"])
def test_a_hostile_template_stops_no_other_request_and_no_shutdown(name):
    with Served(template=TEMPLATES[name]) as server:
        answers = []
        body = b'{"messages": [{"role": "user", "content": "x"}]}'
        chats = [
            threading.Thread(
                target=lambda: answers.append(send(server, "/v1/chat/completions", body))
            )
            for _ in range(4)
        ]
        with longest_stall(server) as worst:
            for chat in chats:
                chat.start()
            begun = time.monotonic()
            short = b'{"text": "x", "sampling_params": {"max_new_tokens": 1}}'
            other, _ = send(server, "/generate", short)
            assert time.monotonic() - begun < 3
            for chat in chats:
                chat.join(20)
        assert other == 200
        assert worst[0] < LIMIT_S
        codes = {msgspec.json.decode(content)["error"]["code"] for _, content in answers}
        assert codes == {"template_exhausted"}
        assert [status for status, _ in answers] == [400] * 4


def _parts(count):
    return [{"type": "text", "text": "x"}] * count


MANY = {
    "ids to detokenize": ("/detokenize", {"tokens": [65] * 1_000_000}),
    "rows to detokenize": ("/detokenize", {"tokens": [[65]] * 200_000}),
    "parts of a message": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": _parts(60_000)}], "max_tokens": 1},
    ),
    "more parts of a message": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": _parts(200_000)}], "max_tokens": 1},
    ),
    "characters of a prompt": ("/v1/completions", {"prompt": "x" * 200_000, "max_tokens": 1}),
    "input ids": ("/generate", {"input_ids": [65] * 1_000_000}),
    "more input ids": ("/generate", {"input_ids": [65] * 2_700_000}),
    "words to tokenize": ("/tokenize", {"prompt": "ab " * 1_000_000}),
    "texts": ("/generate", {"text": ["x"] * 250_000}),
    "more texts": ("/generate", {"text": ["x"] * 2_000_000}),
    "rows": ("/generate", {"input_ids": [[1]] * 250_000}),
    "more rows": ("/generate", {"input_ids": [[1]] * 2_000_000}),
    "prompts of ids": ("/v1/completions", {"prompt": [[1]] * 250_000}),
    "biases": (
        "/v1/completions",
        {"prompt": "x", "logit_bias": {str(n): 1 for n in range(700_000)}},
    ),
    "metadata": (
        "/v1/responses",
        {"input": "x", "metadata": {str(n): "x" for n in range(250_000)}},
    ),
    "tools": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [{"type": "function", "function": {"name": "f"}}] * 50_000,
        },
    ),
}


UNREAD = ("biases", "metadata")


@pytest.mark.parametrize("name", MANY)
def test_a_large_body_does_not_hold_up_the_event_loop(served, name):
    route, body = MANY[name]
    content = msgspec.json.encode(body)
    with longest_stall(served) as worst:
        status, answer = send(served, route, content)
    is_refused_unread = (
        msgspec.json.decode(answer).get("error", {}).get("code") == "too_many_values"
    )
    assert is_refused_unread == (status == 413) == (name in UNREAD or name.startswith("more"))
    assert worst[0] < LIMIT_S


def test_the_measure_sees_a_stall(served):
    def compute():
        begun_s = time.thread_time()
        while time.thread_time() < begun_s + 2 * LIMIT_S:
            pass

    with longest_stall(served) as worst:
        time.sleep(0.05)
        served.call(compute)
    assert worst[0] >= 2 * LIMIT_S
