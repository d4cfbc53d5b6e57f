"""What a request holds while it waits: its tokens, once, and no copy of what was sent."""

import gc
import threading

import pytest

from headstock.config.schema import ServerSettings
from headstock.requests import TokenIds
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
