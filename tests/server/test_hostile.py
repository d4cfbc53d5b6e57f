"""What one client sends stops nobody else: the event loop goes on, memory is bounded."""

import asyncio
import contextlib
import threading

import pytest

from tests.unit.test_text_patterns import HOSTILE


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
