"""Streams that a client goes on with: same process or the next one, nothing lost, nothing twice."""

import json
import subprocess
import sys
import time

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.server.keys import bare_key
from tests.server.conftest import Served, Speaking
from tests.server.test_speech import CALLS
from tests.server.toy_tokenizer import SPEAKING_TEMPLATE

COUNT = 60
ECHO_SERVER = "import sys; from tests.server.echo_server import main; main(*sys.argv[1:])"
KEYS = ["ann:user:key-of-ann-0", "bob:user:key-of-bob-0"]
TEXT = "abcdefghij"
ROUTES = {
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": TEXT}], "max_tokens": COUNT},
    ),
    "usage": (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": TEXT}],
            "max_tokens": COUNT,
            "logprobs": True,
            "top_logprobs": 2,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ),
    "completions": ("/v1/completions", {"prompt": TEXT, "max_tokens": COUNT, "echo": True}),
    "several": ("/v1/completions", {"prompt": [TEXT, "xyz"], "n": 2, "max_tokens": 20}),
    "responses": ("/v1/responses", {"input": TEXT, "max_output_tokens": COUNT}),
    "messages": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": TEXT}], "max_tokens": COUNT},
    ),
    "generate": ("/generate", {"text": TEXT, "sampling_params": {"max_new_tokens": COUNT}}),
    "logprobs": (
        "/generate",
        {
            "text": TEXT,
            "return_logprob": True,
            "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 20},
        },
    ),
    "batch": ("/generate", {"text": [TEXT, "xyz"], "sampling_params": {"max_new_tokens": 20}}),
}


def settings(tmp_path, **more):
    more = {"port": 0, "drain_timeout_s": 0.1, **more}
    return ServerSettings(state_dir=str(tmp_path / "state"), **more)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    made = settings(tmp_path_factory.mktemp("kept"), api_keys=KEYS)
    with Served(engine={"step_s": 0.002}, settings=made) as server:
        yield server


def bearer(key=KEYS[0]):
    return {"Authorization": f"Bearer {bare_key(key)}"}


def events(answer, limit=None):
    """Return (id, data) of the events of a stream, the first ``limit`` of them."""
    found, name = [], None
    for line in answer.iter_lines():
        if line.startswith("id: "):
            name = line[4:]
        elif line.startswith("data: "):
            found.append((name, line[6:]))
            name = None
            if len(found) == limit:
                break
    return found


def stream(url, path, body, *, after=None, limit=None, key=KEYS[0]):
    """Return events of a stream, from the beginning or after an id."""
    headers = bearer(key) | ({"Last-Event-ID": after} if after else {})
    body = {"stream": True, **body}
    with httpx.stream("POST", url + path, json=body, headers=headers, timeout=30) as answer:
        if answer.status_code != 200:
            answer.read()
            return answer.status_code, answer.json()["error"]
        return events(answer, limit)


def plain(data):
    """Return an event without what differs between two runs of the same request."""
    if data == "[DONE]":
        return data
    value = json.loads(data)

    def strip(item):
        if isinstance(item, dict):
            return {
                key: strip(each)
                for key, each in item.items()
                if key not in ("id", "item_id", "created", "created_at", "e2e_latency")
            }
        return [strip(each) for each in item] if isinstance(item, list) else item

    return strip(value)


def check_whole(found, path, body, server):
    """The events have ids without a gap, and are those of a stream that nothing interrupts."""
    names = {name.rpartition("/")[0] for name, _ in found}
    assert len(names) == 1
    assert [int(name.rpartition("/")[2]) for name, _ in found] == list(range(len(found)))
    whole = stream(server.url, path, body)
    assert [plain(data) for _, data in found] == [plain(data) for _, data in whole]


@pytest.mark.parametrize("case", ROUTES)
@pytest.mark.parametrize("limit", [1, 7])
def test_a_stream_goes_on_where_its_client_stopped(kept, case, limit):
    path, body = ROUTES[case]
    begun = stream(kept.url, path, body, limit=limit)
    rest = stream(kept.url, path, body, after=begun[-1][0])
    check_whole(begun + rest, path, body, kept)


@pytest.mark.parametrize("case", ["chat", "completions", "responses", "messages", "generate"])
def test_what_is_large_is_told_again_in_threads(kept, case, monkeypatch):
    path, body = ROUTES[case]
    begun = stream(kept.url, path, body, limit=9)
    for limit in (
        "journals.INLINE_PARTS", "http.resuming.INLINE_DELTAS", "http.bodies.INLINE_BYTES",
    ):  # fmt: skip
        monkeypatch.setattr(f"headstock.server.{limit}", 1)
    rest = stream(kept.url, path, {}, after=begun[-1][0])
    check_whole(begun + rest, path, body, kept)


@pytest.mark.parametrize("case", ["chat", "responses", "messages", "generate", "batch"])
def test_a_stream_that_has_ended_is_told_again_from_any_event(kept, case):
    path, body = ROUTES[case]
    whole = stream(kept.url, path, body)
    for at in (0, 3, len(whole) // 2, len(whole) - 2):
        again = stream(kept.url, path, {}, after=whole[at][0])
        assert [name for name, _ in again] == [name for name, _ in whole[at + 1 :]]
        assert [plain(data) for _, data in again] == [plain(data) for _, data in whole[at + 1 :]]
    assert stream(kept.url, path, {}, after=whole[-1][0]) == []


def test_a_response_begins_in_progress_however_soon_it_ends(served):
    body = {"input": "x", "max_output_tokens": 1, "stream": True}
    answer = served.post("/v1/responses", body)
    begun = [json.loads(line[6:]) for line in answer.text.splitlines() if line[:5] == "data:"]
    assert [event["response"]["status"] for event in begun[:2]] == ["in_progress"] * 2
    assert begun[0]["response"]["usage"] is None


def test_calls_of_functions_have_the_same_names_when_they_are_told_again(tmp_path):
    body = {
        "messages": [{"role": "user", "content": "weather?"}],
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}],
    }
    speaking = Speaking(
        template=SPEAKING_TEMPLATE, settings=settings(tmp_path), engine={"step_s": 0.002}
    )
    with speaking as server:
        server.says("<think>\nhm\n</think>\n\nLet me look.\n" + CALLS)
        path = "/v1/chat/completions"
        whole = stream(server.url, path, body)
        again = stream(server.url, path, {}, after=whole[0][0])
        assert again == whole[1:]
        assert any("call_" in data for _, data in again)


def test_who_comes_back_has_the_stream_alone(kept):
    path, body = ROUTES["chat"]
    body = {**body, "max_tokens": 400, "stream": True}
    with httpx.stream("POST", kept.url + path, json=body, headers=bearer(), timeout=30) as first:
        lines = first.iter_lines()
        name = next(line[4:] for line in lines if line.startswith("id: "))
        second = stream(kept.url, path, {}, after=name)
        left = list(lines)
    assert second[-1][1] == "[DONE]"
    assert any('"code":"stream_taken"' in line for line in left)
    assert len(second) == len(stream(kept.url, path, body)) - 1


@pytest.mark.parametrize(
    ("after", "status", "code"),
    [
        ("nonsense", 400, "invalid_value"),
        ("a/b", 400, "invalid_value"),
        ("0123456789abcdef/3", 404, "not_found"),
        ("../../etc/passwd/3", 400, "invalid_value"),
    ],
)
def test_an_id_of_no_stream_is_refused(kept, after, status, code):
    found = stream(kept.url, *ROUTES["chat"], after=after)
    assert found[0] == status
    assert (found[1]["code"], found[1]["param"]) == (code, "Last-Event-ID")


def test_a_stream_is_of_its_key_and_of_its_route(kept):
    path, body = ROUTES["chat"]
    name = stream(kept.url, path, body)[5][0]
    assert stream(kept.url, path, body, after=name, key=KEYS[1])[0] == 404
    assert stream(kept.url, "/v1/completions", {"prompt": "x"}, after=name)[0] == 404


def test_a_server_without_a_folder_refuses_to_go_on_and_gives_no_ids(served):
    path, body = ROUTES["chat"]
    status, error = stream(served.url, path, body, after="0123/4")
    assert (status, error["code"], error["param"]) == (400, "not_supported", "Last-Event-ID")
    assert {name for name, _ in stream(served.url, path, body)} == {None}


def test_a_stream_that_nobody_comes_back_for_ends(tmp_path):
    made = settings(tmp_path, stream_resume_s=0.3)
    with Served(engine={"step_s": 0.05}, settings=made) as server:
        path, body = ROUTES["chat"]
        name = stream(server.url, path, {**body, "max_tokens": 400}, limit=2)[-1][0]
        assert server.call(lambda: server.frontdoor.num_live) == 1
        deadline = time.monotonic() + 10
        while server.call(lambda: server.frontdoor.num_live) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.call(lambda: server.frontdoor.num_live) == 0
        assert stream(server.url, path, {}, after=name)[0] == 404
        assert server.frontdoor.store.entries("call") == []


@pytest.mark.parametrize("case", ["chat", "usage", "several", "generate", "logprobs", "responses"])
def test_a_stream_goes_on_in_the_next_process_after_a_drain(tmp_path, case):
    path, body = ROUTES[case]
    made = settings(tmp_path, api_keys=KEYS)
    with Served(engine={"step_s": 0.02}, settings=made) as server:
        begun = stream(server.url, path, body, limit=4)
    with Served(engine={"step_s": 0.002}, settings=made) as server:
        assert server.call(lambda: server.frontdoor.num_live) > 0
        rest = stream(server.url, path, {}, after=begun[-1][0])
        check_whole(begun + rest, path, body, server)
        state = server.call(server.engine.state)
        assert state.running == 0


def start(tmp_path):
    """Return an echo server of its own process, and its URL."""
    process = subprocess.Popen(
        [sys.executable, "-c", ECHO_SERVER, "0.02", "1", str(tmp_path / "state")],
        stdout=subprocess.PIPE,
        text=True,
    )
    return process, process.stdout.readline().strip()


def test_a_killed_process_loses_no_stream_and_the_next_one_emits_nothing_twice(tmp_path):
    process, url = start(tmp_path)
    begun = {}
    for case in ("chat", "completions", "responses", "generate"):
        begun[case] = stream(url, *ROUTES[case], limit=5)
    process.kill()
    process.wait()
    again, url = start(tmp_path)
    server = type("", (), {"url": url})
    try:
        for case, first in begun.items():
            rest = stream(url, ROUTES[case][0], {}, after=first[-1][0])
            check_whole(first + rest, *ROUTES[case], server)
    finally:
        again.kill()
        again.wait()


def test_a_request_that_three_processes_died_of_is_ended(tmp_path):
    made = settings(tmp_path)
    with Served(engine={"step_s": 0.02}, settings=made) as server:
        path, body = ROUTES["chat"]
        name = stream(server.url, path, {**body, "max_tokens": 400}, limit=2)[-1][0]
    for _ in range(3):  # none of these draws a token
        with Served(engine={"step_s": 30.0}, settings=made) as server:
            assert server.call(lambda: server.frontdoor.num_live) == 1
    with Served(settings=made) as server:
        assert server.call(lambda: server.frontdoor.num_live) == 0
        events_left = stream(server.url, path, {}, after=name)
        assert json.loads(events_left[-2][1])["error"]["code"] == "computation_failed"
        assert "died 3 times" in events_left[-2][1]


def test_a_stream_of_another_model_is_ended_and_not_gone_on_with(tmp_path):
    made = settings(tmp_path)
    path, body = ROUTES["chat"]
    with Served(engine={"step_s": 0.02}, settings=made) as server:
        name = stream(server.url, path, {**body, "max_tokens": 400}, limit=2)[-1][0]
    with Served(settings=made, card={"model_path": "/another"}) as server:
        assert server.call(lambda: server.frontdoor.num_live) == 0
        assert not [message for message in server.engine.seen if hasattr(message, "prompt_ids")]
        left = stream(server.url, path, {}, after=name)
        assert json.loads(left[-2][1])["error"]["code"] == "model_not_found"


def test_what_an_earlier_process_left_is_waited_for(tmp_path, monkeypatch):
    made = settings(tmp_path)
    path, body = ROUTES["chat"]
    with Served(engine={"step_s": 0.02}, settings=made) as server:
        name = stream(server.url, path, {**body, "max_tokens": 400}, limit=2)[-1][0]

    async def later(door):
        return 0

    monkeypatch.setattr("headstock.server.resumption.Resumption.revive", later)
    with Served(settings=made) as server:
        assert stream(server.url, path, {}, after=name)[0] == 503
        assert server.get("/v1/responses/resp_x").status_code == 503


def test_what_is_too_much_to_write_down_is_streamed_without_ids(tmp_path, monkeypatch):
    monkeypatch.setattr("headstock.server.journals.MAX_HEAD_BYTES", 1000)
    with Served(settings=settings(tmp_path)) as server:
        body = {"prompt": "x" * 300, "max_tokens": 4}
        assert {name for name, _ in stream(server.url, "/v1/completions", body)} == {None}
        refused = server.post("/v1/responses", {"input": "x" * 300, "background": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")


def test_a_full_store_stops_no_stream(tmp_path):
    made = settings(tmp_path, state_key_bytes=10)
    with Served(settings=made) as server:
        path, body = ROUTES["chat"]
        found = stream(server.url, path, body)
        assert {name for name, _ in found} == {None}
        assert found[-1][1] == "[DONE]"
        refused = server.post("/v1/responses", {"input": "x", "store": True})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "storage_full")
