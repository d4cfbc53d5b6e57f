"""Files and batches, as OpenAI's client uses them, over restarts and beside other requests."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import openai
import pytest

from headstock.config.schema import ServerSettings
from headstock.server.batches import read_lines
from headstock.server.files import KIND, PART_KIND, FileBook
from headstock.server.store import DiskStore
from headstock.wire.messages import Submit
from tests.server.conftest import Served

CHAT = "/v1/chat/completions"
KEYS = ["first-key-0123456789", "second-key-0123456789"]


def settings(folder: Path | None = None, **more) -> ServerSettings:
    state = None if folder is None else str(folder)
    return ServerSettings(port=0, drain_timeout_s=0.2, state_dir=state, **more)


def client_of(server: Served, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


def line(number: int, **body) -> dict:
    messages = [{"role": "user", "content": f"say {number}"}]
    whole = {"model": "echo", "messages": messages, "max_tokens": 4, **body}
    return {"custom_id": f"line-{number}", "method": "POST", "url": CHAT, "body": whole}


def text_of(lines: list[dict]) -> bytes:
    return "".join(json.dumps(each) + "\n" for each in lines).encode()


def begin(client: openai.OpenAI, lines: list[dict] | bytes, endpoint: str = CHAT):
    text = lines if isinstance(lines, bytes) else text_of(lines)
    file = client.files.create(file=("in.jsonl", text), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", metadata={"for": "me"}
    )


def over(client: openai.OpenAI, name: str):
    deadline = time.monotonic() + 60
    while True:
        batch = client.batches.retrieve(name)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)


def answers(client: openai.OpenAI, file_id: str) -> dict[str, dict]:
    found = map(json.loads, client.files.content(file_id).text.splitlines())
    return {each["custom_id"]: each for each in found}


@pytest.fixture(scope="module")
def server():
    with Served(settings=settings()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def test_files_are_kept_listed_read_and_deleted(client):
    text = b"x" * 3_000_000
    file = client.files.create(file=("big.jsonl", text), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (3_000_000, "big.jsonl", "batch")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == text
    other = client.files.create(file=("small.jsonl", b"{}"), purpose="batch")
    assert [each.id for each in client.files.list(limit=1).data] == [other.id]
    assert [each.id for each in client.files.list(after=other.id)] == [file.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.files.content(file.id)


def test_a_batch_answers_each_line_and_tells_the_good_from_the_bad(client):
    lines = [line(number) for number in range(20)]
    lines[3]["body"]["top_p"] = 7
    batch = begin(client, lines)
    assert batch.status in ("validating", "in_progress")
    done = over(client, batch.id)
    assert done.status == "completed"
    counts = done.request_counts
    assert (counts.total, counts.completed, counts.failed) == (20, 19, 1)
    assert done.metadata == {"for": "me"}
    good, bad = answers(client, done.output_file_id), answers(client, done.error_file_id)
    assert set(good) == {f"line-{number}" for number in range(20) if number != 3}
    told = good["line-7"]["response"]
    assert told["status_code"] == 200
    assert told["body"]["choices"][0]["finish_reason"] == "length"
    assert bad["line-3"]["response"]["status_code"] == 400
    assert bad["line-3"]["response"]["body"]["error"]["param"] == "top_p"
    assert [each.id for each in client.batches.list(limit=1).data] == [batch.id]


def test_lines_have_the_lowest_priority(client, server):
    over(client, begin(client, [line(1), line(2, priority=5)]).id)
    submits = [m for m in server.engine.seen if isinstance(m, Submit)]
    assert sorted(m.priority for m in submits[-2:]) == [-(2**31), 5]


def test_the_other_endpoints_are_answered(client):
    for endpoint, body in (
        ("/v1/completions", {"prompt": "ab", "max_tokens": 2}),
        ("/v1/responses", {"input": "ab", "max_output_tokens": 2}),
    ):
        entry = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
        done = over(client, begin(client, [entry], endpoint).id)
        assert done.request_counts.completed == 1, endpoint


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        (b"not json\n", "invalid_json_line", 1),
        (b"", "empty_file", None),
        (b"\n\n", "empty_file", None),
        (text_of([line(1), line(1)]), "invalid_value", 2),
        (text_of([line(1, stream=True)]), "invalid_value", 1),
        (text_of([{**line(1), "url": "/generate"}]), "invalid_value", 1),
        (text_of([{**line(1), "method": "GET"}]), "invalid_value", 1),
    ],
)
def test_a_file_that_is_wrong_fails_the_batch_and_names_the_line(client, lines, code, number):
    done = over(client, begin(client, lines).id)
    assert done.status == "failed"
    assert done.errors.data[0].line == number
    assert done.errors.data[0].code == code


def test_a_file_that_comes_in_pieces_has_the_same_lines():
    text = text_of([line(number) for number in range(9)])
    whole = read_lines([text], CHAT)
    for size in (1, 7, 100):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert read_lines(pieces, CHAT) == whole
    assert len(whole[0]) == 9


def test_what_is_wrong_with_an_upload_or_a_batch_is_named(client, server):
    file = client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    for body, field in (
        ({"input_file_id": "none", "endpoint": CHAT}, "input_file_id"),
        ({"input_file_id": file.id, "endpoint": "/generate"}, "endpoint"),
        ({"input_file_id": file.id, "endpoint": CHAT, "completion_window": "1h"}, None),
    ):
        answer = server.post("/v1/batches", body)
        assert answer.status_code in (400, 404), answer.text
        assert answer.json()["error"]["param"] == (field or "completion_window")
    url = server.url + "/v1/files"
    for more, field in (
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "assistants"}}, "purpose"),
        ({"files": {"other": ("a", b"x")}, "data": {"purpose": "batch"}}, "file"),
    ):
        answer = httpx.post(url, timeout=20, **more)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == field
    assert httpx.post(url, json={}, timeout=20).status_code == 415
    broken = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx.post(url, content=b"rubbish", headers=broken, timeout=20).status_code == 400


def test_a_file_over_the_bound_is_refused_and_nothing_of_it_stays():
    with Served(settings=settings(max_file_bytes=1_500_000)) as server:
        client = client_of(server)
        for size in (1_500_001, 3_000_000):
            with pytest.raises(openai.APIStatusError, match="larger than") as caught:
                client.files.create(file=("big", b"x" * size), purpose="batch")
            assert caught.value.status_code == 413
        assert server.call(lambda: server.frontdoor.store.entries(PART_KIND)) == []
        assert client.files.create(file=("fits", b"x" * 1_500_000), purpose="batch").bytes


def test_files_and_batches_are_their_key_s():
    with Served(settings=settings(api_keys=KEYS)) as server:
        first, second = (client_of(server, key) for key in KEYS)
        batch = begin(first, [line(1)])
        assert over(first, batch.id).request_counts.completed == 1
        assert list(second.files.list()) == []
        assert list(second.batches.list()) == []
        for ask in (second.batches.retrieve, second.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)


def test_a_batch_goes_on_after_a_restart_without_asking_twice(tmp_path):
    lines = [line(number, max_tokens=40) for number in range(12)]
    with Served(settings=settings(tmp_path), engine={"step_s": 0.01}) as server:
        client = client_of(server)
        batch = begin(client, lines)
        deadline = time.monotonic() + 60
        while client.batches.retrieve(batch.id).request_counts.completed < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    store = DiskStore(tmp_path / "store")
    kept = {entry.name for entry in store.entries("batch_line")}
    store.close()
    assert 4 <= len(kept) < 12
    with Served(settings=settings(tmp_path)) as server:
        client = client_of(server)
        done = over(client, batch.id)
        assert done.request_counts.completed == 12
        assert len(answers(client, done.output_file_id)) == 12
        asked = server.call(lambda: [m for m in server.engine.seen if isinstance(m, Submit)])
        assert len(asked) == 12 - len(kept)
        assert server.call(lambda: server.frontdoor.store.entries("batch_line")) == []


def test_a_cancelled_batch_keeps_what_it_has():
    lines = [line(number, max_tokens=400) for number in range(30)]
    with Served(settings=settings(), engine={"step_s": 0.005}) as server:
        client = client_of(server)
        batch = begin(client, [line(0, max_tokens=1), *lines[1:]])
        deadline = time.monotonic() + 60
        while client.batches.retrieve(batch.id).request_counts.completed < 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.batches.cancel(batch.id).status == "cancelling"
        done = over(client, batch.id)
        assert done.status == "cancelled"
        assert "line-0" in answers(client, done.output_file_id)
        assert done.request_counts.completed < 30
        with pytest.raises(openai.BadRequestError, match="is cancelled"):
            client.batches.cancel(batch.id)


def test_a_batch_leaves_half_of_the_free_places_to_others():
    with Served(settings=settings(), engine={"step_s": 0.005}) as server:  # 8 places
        client = client_of(server)
        batch = begin(client, [line(number, max_tokens=300) for number in range(40)])
        deadline = time.monotonic() + 60
        while server.call(lambda: len(server.engine.running)) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        counts = set()
        for _ in range(20):
            counts.add(server.call(lambda: len(server.engine.running)))
            time.sleep(0.01)
        assert max(counts) == 4
        client.batches.cancel(batch.id)
        over(client, batch.id)


def test_what_of_a_file_came_before_a_crash_is_forgotten(tmp_path):
    store = DiskStore(tmp_path)
    store.put(PART_KIND, "me", "file-a/0", b"x")
    store.put(PART_KIND, "me", "file-b/0", b"y")
    store.put(KIND, "me", "file-b", b"{}")
    FileBook(store, 10)
    assert [entry.name for entry in store.entries(PART_KIND)] == ["file-b/0"]
    store.close()
