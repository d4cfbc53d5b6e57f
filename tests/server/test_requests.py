"""`/requests`: what became of the last requests, for those who sent them."""

import httpx

from headstock.config.schema import ServerSettings
from tests.server.conftest import Served

BODY = {"prompt": "hello", "max_tokens": 6}


def settings(**more):
    return ServerSettings(port=0, drain_timeout_s=2.0, **more)


def test_a_request_is_found_by_the_id_of_its_answer(served):
    answer = served.post("/v1/completions", BODY)
    name = answer.headers["x-request-id"]
    told = served.get(f"/requests/{name}").json()
    assert (told["id"], told["route"], told["state"]) == (name, "/v1/completions", "ended")
    (one,) = told["completions"]
    assert (one["prompt_tokens"], one["output_tokens"], one["max_tokens"]) == (5, 6, 6)
    assert (one["cached_tokens"], one["shared_tokens"], one["evicted_pages"]) == (3, 2, 1)
    assert one["waits"] == {"slots": 0.002}
    assert one["finish_reason"] == "length"
    assert sum(count for _, count in one["tokens"]) == 6
    assert one["chunks"][0]["begin"] == 3
    assert 0 <= one["sent_s"] <= one["first_token_s"] <= one["total_s"] == told["total_s"]


def test_a_name_of_the_clients_finds_it_too(served):
    served.post("/v1/completions", BODY, headers={"x-request-id": "my-own"})
    assert served.get("/requests/my-own").json()["id"] == "my-own"


def test_streams_and_several_completions_are_recorded(served):
    served.post("/v1/completions", {**BODY, "stream": True, "n": 2})
    latest = served.get("/requests", params={"limit": 1}).json()["data"][0]
    assert [one["index"] for one in latest["completions"]] == [0, 1]
    assert "tokens" not in latest["completions"][0]


def test_the_list_has_the_latest_first(served):
    names = [served.post("/v1/completions", BODY).headers["x-request-id"] for _ in range(3)]
    found = served.get("/requests", params={"limit": 3}).json()
    assert [each["id"] for each in found["data"]] == names[::-1]


def test_a_program_is_one_request(served):
    gens = [
        {"type": "gen", "name": name, "sampling_params": {"max_new_tokens": 2}} for name in "ab"
    ]
    answer = served.post("/v1/programs", {"steps": [{"type": "text", "text": "hi"}, *gens]})
    assert answer.status_code == 200, answer.text
    told = served.get(f"/requests/{answer.headers['x-request-id']}").json()
    assert told["route"] == "/v1/programs"
    assert [one["index"] for one in told["completions"]] == [0, 1]


def test_no_text_is_kept(served):
    name = served.post("/v1/completions", {**BODY, "prompt": "canary"}).headers["x-request-id"]
    assert "canary" not in served.get(f"/requests/{name}").text


def test_what_is_not_there_or_too_much_is_refused(served):
    missing = served.get("/requests/nothing")
    assert missing.status_code == 404
    assert "of yours" in missing.json()["error"]["message"]
    for limit in (0, 257):
        answer = served.get("/requests", params={"limit": limit})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "limit"


def test_keys_see_their_own_requests_only():
    keys = ["ann:user:long-secret-1", "bob:user:long-secret-2"]
    with Served(settings=settings(api_keys=keys)) as server:
        ann, bob = ({"authorization": f"Bearer long-secret-{n}"} for n in (1, 2))
        name = server.post("/v1/completions", BODY, headers=ann).headers["x-request-id"]
        assert server.get(f"/requests/{name}", headers=ann).status_code == 200
        assert server.get(f"/requests/{name}", headers=bob).status_code == 404
        assert server.get("/requests", headers=bob).json()["data"] == []
        assert server.get("/requests").status_code == 401


def test_an_admin_may_see_everyones():
    keys = ["ann:user:long-secret-1", "ops:admin:long-secret-2"]
    with Served(settings=settings(api_keys=keys)) as server:
        ann, ops = ({"authorization": f"Bearer long-secret-{n}"} for n in (1, 2))
        names = [
            server.post("/v1/completions", BODY, headers=who).headers["x-request-id"]
            for who in (ann, ops, ann)
        ]
        all_of_them = {"everyone": "true"}
        found = server.get("/requests", params=all_of_them, headers=ops).json()["data"]
        assert [one["id"] for one in found] == names[::-1]
        one = server.get(f"/requests/{names[0]}", params=all_of_them, headers=ops)
        assert one.json()["id"] == names[0]
        assert server.get(f"/requests/{names[0]}", headers=ops).status_code == 404
        assert server.get("/requests", params=all_of_them, headers=ann).status_code == 403


def test_the_ring_is_bounded_and_can_be_off():
    with Served(settings=settings(request_records=2)) as server:
        for _ in range(4):
            server.post("/v1/completions", BODY)
        assert len(server.get("/requests", params={"limit": 2}).json()["data"]) == 2
        assert server.get("/requests", params={"limit": 3}).status_code == 400
    with Served(settings=settings(request_records=0)) as server:
        name = server.post("/v1/completions", BODY).headers["x-request-id"]
        assert server.get(f"/requests/{name}").status_code == 404
        asked = [m for m in server.engine.seen if type(m).__name__ == "Submit"]
        assert not any(each.wants_story for each in asked)


def test_a_stream_that_is_gone_on_with_is_recorded_to_its_end(tmp_path):
    kept = settings(state_dir=str(tmp_path / "state"), request_records=4)
    body = {"prompt": "hello", "max_tokens": 60, "stream": True}
    with Served(engine={"step_s": 0.002}, settings=kept) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as first:
            name = first.headers["x-request-id"]
            lines = first.iter_lines()
            last_id = next(line[4:] for line in lines if line.startswith("id: "))
        headers = {"Last-Event-ID": last_id}
        answer = server.post("/v1/completions", body, headers=headers)
        assert answer.text.endswith("data: [DONE]\n\n")
        (one,) = server.get(f"/requests/{name}").json()["completions"]
        assert (one["state"], one["output_tokens"]) == ("ended", 60)
