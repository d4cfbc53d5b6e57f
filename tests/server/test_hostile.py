"""What one client sends stops nobody else: the event loop goes on, memory is bounded."""

import asyncio
import contextlib
import gc
import threading
import time

import msgspec
import pytest

from tests.server.conftest import Served
from tests.unit.test_text_patterns import HOSTILE
from tests.unit.test_text_template import HOSTILE as TEMPLATES


@contextlib.contextmanager
def longest_stall(server):
    """Measure the longest time that the server's event loop did not turn. Seconds."""
    worst = [0.0]
    stopped = threading.Event()

    async def look():
        clock = asyncio.get_running_loop().time
        while not stopped.is_set():
            begun = clock()
            await asyncio.sleep(0.005)
            worst[0] = max(worst[0], clock() - begun - 0.005)

    watching = asyncio.run_coroutine_threadsafe(look(), server.loop)
    yield worst
    stopped.set()
    watching.result(10)


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("route", ["/generate", "/v1/completions"])
def test_a_hostile_pattern_is_refused_while_the_loop_turns(served, route, pattern):
    body = {"sampling_params": {"stop_regex": pattern}, "text": "x"}
    if route != "/generate":
        body = {"stop_regex": [pattern] * 4, "prompt": "x"}
    with longest_stall(served) as worst:
        answer = served.post(route, body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stop_regex"
    assert worst[0] < 0.5


@pytest.mark.parametrize("name", ["loops", "doubles"])
def test_a_hostile_template_stops_no_other_request_and_no_shutdown(name):
    with Served(template=TEMPLATES[name]) as server:
        answers = []
        body = {"messages": [{"role": "user", "content": "x"}]}
        chats = [
            threading.Thread(
                target=lambda: answers.append(server.post("/v1/chat/completions", body))
            )
            for _ in range(4)
        ]
        with longest_stall(server) as worst:
            for chat in chats:
                chat.start()
            begun = time.monotonic()
            other = server.post(
                "/generate", {"text": "x", "sampling_params": {"max_new_tokens": 1}}
            )
            assert time.monotonic() - begun < 3
            for chat in chats:
                chat.join(20)
        assert other.status_code == 200
        assert worst[0] < 0.5
        codes = {answer.json()["error"]["code"] for answer in answers}
        assert codes == {"template_exhausted"}
        assert {answer.status_code for answer in answers} == {400}


def _parts(count):
    return [{"type": "text", "text": "x"}] * count


MANY = {
    "ids to detokenize": ("/detokenize", {"tokens": [65] * 1_000_000}),
    "rows to detokenize": ("/detokenize", {"tokens": [[65]] * 200_000}),
    "parts of a message": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": _parts(200_000)}], "max_tokens": 1},
    ),
    "characters of a prompt": ("/v1/completions", {"prompt": "x" * 200_000, "max_tokens": 1}),
    "input ids": ("/generate", {"input_ids": [65] * 2_000_000}),
    "words to tokenize": ("/tokenize", {"prompt": "ab " * 1_000_000}),
}


@pytest.mark.parametrize("name", MANY)
def test_a_large_body_does_not_hold_up_the_event_loop(served, name):
    route, body = MANY[name]
    content = msgspec.json.encode(body)  # here: the client shares a process with the server
    headers = {"content-type": "application/json"}
    gc.collect()
    gc.freeze()  # as a server does once it is up: what pytest holds is not looked through
    stalls = []
    for _ in range(3):  # the best of three: other work on the machine stalls it too
        with longest_stall(served) as worst:
            answer = served.post(route, content=content, headers=headers)
        assert answer.status_code in (200, 400)
        stalls.append(worst[0])
    gc.unfreeze()
    assert min(stalls) < 0.5  # 0.1 on a machine with nothing else to do
