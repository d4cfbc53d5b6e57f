"""Responses that were asked to be stored: whose they are, how many, and over a restart."""

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.server.keys import bare_key
from headstock.server.protocols import response_store
from tests.server.conftest import Served

KEYS = ["ann:user:key-of-ann-0", "bob:user:key-of-bob-0"]


def bearer(key):
    return {"Authorization": f"Bearer {bare_key(key)}"}


def store(server, key=None, text="hi", **more):
    body = {"model": "echo", "input": text, "store": True, **more}
    answer = server.post("/v1/responses", body, headers=bearer(key) if key else {})
    assert answer.status_code == 200, answer.text
    return answer.json()


def find(server, response_id, key=None):
    return server.get(f"/v1/responses/{response_id}", headers=bearer(key) if key else {})


def settings(tmp_path, **more):
    return ServerSettings(port=0, state_dir=str(tmp_path / "state"), **more)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_stored_response_is_found_after_a_restart_and_can_be_followed(tmp_path, is_streamed):
    with Served(settings=settings(tmp_path)) as server:
        if is_streamed:
            body = {"model": "echo", "input": "hi", "store": True, "stream": True}
            text = server.post("/v1/responses", body).text
            made = {"id": text.split('"id":"')[1].split('"')[0]}
        else:
            made = store(server)
        before = find(server, made["id"]).json()
    assert before["status"] in ("completed", "incomplete")
    with Served(settings=settings(tmp_path)) as server:
        assert find(server, made["id"]).json() == before
        follows = store(server, previous_response_id=made["id"])
        prompt = server.tokenizer.decode(server.engine.seen[-1].prompt_ids)
        assert before["output"][-1]["content"][0]["text"][:8] in prompt
        assert follows["previous_response_id"] == made["id"]
        url = f"{server.url}/v1/responses/{made['id']}"
        assert httpx.delete(url).json()["deleted"] is True
    with Served(settings=settings(tmp_path)) as server:
        assert find(server, made["id"]).status_code == 404


def test_what_a_key_stored_is_its_own_over_a_restart_and_with_more_keys(tmp_path):
    with Served(settings=settings(tmp_path, api_keys=KEYS[:1])) as server:
        made = store(server, KEYS[0])
    with Served(settings=settings(tmp_path, api_keys=KEYS)) as server:
        assert find(server, made["id"], KEYS[0]).status_code == 200
        refused = find(server, made["id"], KEYS[1])
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "not_found")


def test_the_oldest_responses_of_a_key_make_room_for_its_new_ones(monkeypatch):
    monkeypatch.setattr(response_store, "MAX_STORED", 2)
    with Served(settings=ServerSettings(port=0, api_keys=KEYS)) as server:
        other = store(server, KEYS[1])
        made = [store(server, KEYS[0])["id"] for _ in range(3)]
        found = [find(server, each, KEYS[0]).status_code for each in made]
        assert found == [404, 200, 200]
        assert find(server, other["id"], KEYS[1]).status_code == 200


def test_bytes_of_a_key_are_bounded_and_a_response_that_never_fits_is_refused():
    with Served(settings=ServerSettings(port=0, state_key_bytes=6000)) as server:
        first = store(server, text="a" * 200)
        for _ in range(6):
            last = store(server, text="b" * 200)
        assert find(server, first["id"]).status_code == 404
        assert find(server, last["id"]).status_code == 200
        body = {"model": "echo", "input": "x" * 400, "metadata": {"m": "y" * 9000}, "store": True}
        refused = server.post("/v1/responses", body)
        assert refused.status_code == 507
        assert refused.json()["error"]["code"] == "storage_full"
