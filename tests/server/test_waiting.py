"""What a request holds while it waits: its tokens, once, and no copy of what was sent."""

import asyncio
import collections
import gc
import threading
import types

import pytest

from headstock.config.schema import ServerSettings
from headstock.requests import TokenIds
from headstock.server.completion import LogprobColumns
from headstock.server.http.connections import CountedProtocol
from tests.server.conftest import Served

COUNT = 301
"""Tokens of the prompt: nothing else here has as many."""
SETTINGS = ServerSettings(port=0, drain_timeout_s=1.0)


def held(kind):
    return sum(type(each) is kind and len(each) == COUNT for each in gc.get_objects())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"input_ids": [5] * COUNT, "sampling_params": {"max_new_tokens": 40}}),
        ("/v1/completions", {"prompt": [5] * COUNT, "max_tokens": 40}),
    ],
)
def test_what_was_sent_is_dropped_once_the_engine_has_it(path, body, stream):
    sent = {**body, "stream": stream}
    with Served(engine={"step_s": 0.1}, settings=SETTINGS) as server:
        asked = threading.Thread(target=server.post, args=(path, sent))
        before = held(list)
        asked.start()
        while not server.engine.running:
            pass
        gc.collect()
        assert held(list) == before
        assert [m.prompt_ids for m in server.engine.seen] == [TokenIds([5] * COUNT)]
        server.call(server.frontdoor.abort_all)
        asked.join(10)


def kinds():
    gc.collect()
    return collections.Counter(type(each) for each in gc.get_objects())


def test_a_request_that_waits_holds_no_queue_and_no_column_that_it_did_not_ask_for():
    body = {"input_ids": [5] * COUNT, "sampling_params": {"max_new_tokens": 150}}
    num = 6
    with Served(engine={"step_s": 0.1}, settings=SETTINGS) as server:
        server.post("/generate", {**body, "sampling_params": {"max_new_tokens": 1}})
        server.call(lambda: setattr(server.engine, "is_paused", True))
        before = kinds()
        asked = [threading.Thread(target=server.post, args=("/generate", body)) for _ in range(num)]
        for each in asked:
            each.start()
        while len(server.engine.running) < num:
            pass
        # The clients are in this process too: what they hold in their threads is not counted.
        more = kinds() - before
        assert more[CountedProtocol] == num
        assert more[LogprobColumns] == 0
        assert more[asyncio.Event] == 0
        assert more[types.CoroutineType] <= 9 * num
        server.call(lambda: setattr(server.engine, "is_paused", False))
        server.call(server.frontdoor.abort_all)
        for each in asked:
            each.join(10)
