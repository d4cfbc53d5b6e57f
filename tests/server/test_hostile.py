"""What one client sends stops nobody else: the event loop goes on, memory is bounded."""

import asyncio
import contextlib
import threading
import time

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
            assert time.monotonic() - begun < 1
            for chat in chats:
                chat.join(20)
        assert other.status_code == 200
        assert worst[0] < 0.5
        codes = {answer.json()["error"]["code"] for answer in answers}
        assert codes == {"template_exhausted"}
        assert {answer.status_code for answer in answers} == {400}
