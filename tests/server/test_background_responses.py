"""Responses that are made without a client: found, followed, cancelled, and gone on with."""

import contextlib
import threading
import time

import httpx
import openai
import pytest

from headstock.config.schema import ServerSettings
from tests.server.conftest import Served
from tests.server.test_resuming import plain, settings, stream

ASKED = {"model": "echo", "input": "abcdefghij", "background": True, "max_output_tokens": 40}


@pytest.fixture(scope="module")
def slow():
    with Served(engine={"step_s": 0.01}, settings=ServerSettings(port=0)) as server:
        yield server


def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def wait_over(made, response_id):
    deadline = time.monotonic() + 20
    while (found := made.responses.retrieve(response_id)).status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def test_a_background_response_is_answered_at_once_and_found_when_it_is_made(slow):
    made = client(slow)
    begun = made.responses.create(**ASKED)
    assert (begun.status, begun.background, begun.output_text) == ("in_progress", True, "")
    amid = made.responses.retrieve(begun.id)
    over = wait_over(made, begun.id)
    assert over.status == "incomplete"
    assert over.usage.output_tokens == 40
    assert over.output_text.startswith(amid.output_text)
    whole = made.responses.create(**ASKED | {"background": False})
    assert over.output_text == whole.output_text
    follows = made.responses.create(**ASKED | {"previous_response_id": begun.id})
    assert wait_over(made, follows.id).previous_response_id == begun.id


def test_its_events_can_be_followed_from_any_one_as_openai_has_it(slow):
    made = client(slow)
    begun = made.responses.create(**ASKED, stream=True)
    seen = [next(begun) for _ in range(6)]
    begun.close()
    response_id = seen[0].response.id
    rest = list(
        made.responses.retrieve(response_id, stream=True, starting_after=seen[-1].sequence_number)
    )
    numbers = [event.sequence_number for event in [*seen, *rest]]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.incomplete"
    assert rest[-1].response.output_text == wait_over(made, response_id).output_text
    again = list(made.responses.retrieve(response_id, stream=True))
    assert [event.type for event in again] == [event.type for event in [*seen, *rest]]


def test_a_client_that_leaves_does_not_end_it(slow):
    made = client(slow)
    with made.responses.create(**ASKED, stream=True) as begun:
        response_id = next(begun).response.id
    assert wait_over(made, response_id).usage.output_tokens == 40


def test_it_can_be_cancelled_and_deleted(slow):
    made = client(slow)
    begun = made.responses.create(**ASKED | {"max_output_tokens": 400})
    cancelled = made.responses.cancel(begun.id)
    assert cancelled.status == "cancelled"
    assert made.responses.retrieve(begun.id).status == "cancelled"
    assert slow.call(lambda: slow.frontdoor.num_live) == 0
    running = made.responses.create(**ASKED | {"max_output_tokens": 400})
    made.responses.delete(running.id)
    with pytest.raises(openai.NotFoundError):
        made.responses.retrieve(running.id)
    assert slow.call(lambda: slow.frontdoor.num_live) == 0
    with pytest.raises(openai.NotFoundError):
        made.responses.cancel("resp_none")


def test_it_goes_on_in_the_next_process(tmp_path):
    made = settings(tmp_path)
    with Served(engine={"step_s": 0.05}, settings=made) as server:
        whole = client(server).responses.create(**ASKED | {"background": False})
        begun = client(server).responses.create(**ASKED)
    with Served(engine={"step_s": 0.002}, settings=made) as server:
        over = wait_over(client(server), begun.id)
        assert over.output_text == whole.output_text
        assert over.usage == whole.usage


def post_and_forget(url, body):
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(url, json=body, timeout=20)


def wait_for(look):
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stored_response_is_made_whole_though_its_client_and_its_process_are_gone(
    tmp_path, is_streamed
):
    made = settings(tmp_path)
    asked = {"input": "abcdefghij", "store": True, "max_output_tokens": 60}
    with Served(engine={"step_s": 0.02}, settings=made) as server:
        if is_streamed:
            begun = stream(server.url, "/v1/responses", asked, limit=5)
        else:
            url = server.url + "/v1/responses"
            client_gone = threading.Thread(target=lambda: post_and_forget(url, asked))
            client_gone.start()
            wait_for(lambda: server.frontdoor.store.entries("call"))
        (entry,) = server.frontdoor.store.entries("call")
    with Served(engine={"step_s": 0.002}, settings=made) as server:
        over = wait_over(client(server), entry.name)
        assert over.usage.output_tokens == 60
        if is_streamed:
            rest = stream(server.url, "/v1/responses", {}, after=begun[-1][0])
            assert plain(rest[-1][1])["response"]["output"] == plain(over.to_json())["output"]
