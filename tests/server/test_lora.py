"""Adapters over HTTP: names as models, loading and unloading, roles, generations."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from headstock.config.schema import ServerSettings
from headstock.wire.messages import Submit
from tests.server.conftest import Served


@pytest.fixture
def server():
    with Served(engine={"tokens_per_step": 4}) as running:
        yield running


def load(server: Served, name: str, path: str = "/a", route: str = "/load_lora_adapter"):
    return server.post(route, json={"lora_name": name, "lora_path": path})


def unload(server: Served, name: str, route: str = "/unload_lora_adapter", **more):
    return server.post(route, json={"lora_name": name, **more})


def adapters_of(server: Served) -> list[str]:
    """Adapters of the requests that run, as the engine knows them."""
    engine = server.engine
    return server.call(lambda: [row.submit.adapter for row in engine.running.values()])


def submitted(server: Served) -> list[str]:
    """Adapters of the requests that the engine was sent, and forget them."""
    seen = server.engine.seen
    found = [message.adapter for message in seen if isinstance(message, Submit)]
    seen.clear()
    return found


CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
ROUTES = [
    ("/v1/chat/completions", CHAT),
    ("/v1/completions", {"prompt": "hi", "max_tokens": 4}),
    ("/v1/responses", {"input": "hi", "max_output_tokens": 4}),
    ("/v1/messages", CHAT),
    ("/api/chat", {"messages": CHAT["messages"], "stream": False}),
    ("/v1/programs", {"steps": [{"type": "text", "text": "hi"}, {"type": "gen", "name": "x"}]}),
]


@pytest.mark.parametrize(("route", "body"), ROUTES, ids=[route for route, _ in ROUTES])
def test_every_route_takes_an_adapter_as_its_model(server: Served, route: str, body: dict) -> None:
    load(server, "sql")
    submitted(server)
    for model in ("sql", "echo:sql", "default:sql"):
        answer = server.post(route, json={**body, "model": model})
        assert answer.status_code == 200, answer.text
        assert set(submitted(server)) == {"sql#1"}
        if "model" in answer.json():
            assert answer.json()["model"] == model
    assert server.post(route, json={**body, "model": "echo"}).status_code == 200
    assert set(submitted(server)) == {""}
    for model in ("sqll", "echo:sqll"):
        answer = server.post(route, json={**body, "model": model})
        assert answer.status_code == 404, answer.text


def test_generate_takes_a_name_for_all_prompts_or_one_each(server: Served) -> None:
    load(server, "sql")
    load(server, "chat")
    body = {"text": ["a", "b", "c"], "sampling_params": {"max_new_tokens": 2}}
    for field in ("lora_path", "lora_name"):
        for value, wanted in (
            ("sql", ["sql#1"] * 3),
            (["chat", None, "sql"], ["chat#2", "", "sql#1"]),
            (None, [""] * 3),
        ):
            submitted(server)
            assert server.post("/generate", json={**body, field: value}).status_code == 200
            assert submitted(server) == wanted
    for wrong, status in ((["sql"], 400), ("other", 404), (7, 400)):
        answer = server.post("/generate", json={**body, "lora_path": wrong})
        assert answer.status_code == status, answer.text
        assert "lora_path" in str(answer.json()["error"])


def test_lora_path_beside_the_model_names_the_adapter(server: Served) -> None:
    load(server, "sql")
    load(server, "chat")
    ask = {**CHAT, "lora_path": "sql"}
    assert server.post("/v1/chat/completions", json=ask).status_code == 200
    assert server.post("/v1/chat/completions", json={**ask, "model": "sql"}).status_code == 200
    twice = server.post("/v1/chat/completions", json={**ask, "model": "chat"})
    assert twice.status_code == 400
    assert twice.json()["error"]["param"] == "lora_path"
    assert server.post("/v1/chat/completions", json={**ask, "model": "x"}).status_code == 404


def test_models_lists_adapters_with_their_parent(server: Served) -> None:
    load(server, "sql", "/models/sql")
    entries = server.get("/v1/models").json()["data"]
    assert [(one["id"], one["parent"], one["root"]) for one in entries] == [
        ("echo", None, "echo"),
        ("sql", "echo", "/models/sql"),
    ]
    assert server.get("/v1/models/sql").json()["parent"] == "echo"
    assert server.get("/v1/models/other").status_code == 404
    names = [one["name"] for one in server.get("/api/tags").json()["models"]]
    assert names == ["echo:latest", "sql:latest"]


def test_sglangs_and_vllms_routes_answer_as_theirs_do(server: Served) -> None:
    answer = load(server, "a", "/one")
    assert answer.json() == {
        "success": True,
        "error_message": "",
        "loaded_adapters": {"a": "/one"},
    }
    answer = load(server, "b", "/two", "/v1/load_lora_adapter")
    assert answer.text == "Success: LoRA adapter 'b' added successfully."
    assert unload(server, "a").json()["loaded_adapters"] == {"b": "/two"}
    answer = unload(server, "b", "/v1/unload_lora_adapter")
    assert answer.text == "Success: LoRA adapter 'b' removed successfully."
    assert server.call(lambda: server.engine.adapters) == {}


@pytest.mark.parametrize("prefix", ["", "/v1"])
@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"lora_name": "x", "lora_path": "/bad"}, 400, "lora_path"),
        ({"lora_name": "there", "lora_path": "/a"}, 400, "lora_name"),
        ({"lora_name": "echo", "lora_path": "/a"}, 400, "lora_name"),
        ({"lora_name": "a:b", "lora_path": "/a"}, 400, "lora_name"),
        ({"lora_name": "", "lora_path": "/a"}, 400, "lora_name"),
        ({"lora_name": "x"}, 400, None),
        ({"lora_name": "x", "lora_path": "/a", "pinned": True}, 400, "pinned"),
    ],
)
def test_what_cannot_be_loaded_is_told(
    server: Served, prefix: str, body: dict, status: int, param: str | None
) -> None:
    load(server, "there")
    answer = server.post(f"{prefix}/load_lora_adapter", json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    if not prefix:
        assert answer.json()["success"] is False
        assert answer.json()["error_message"]
        assert answer.json()["loaded_adapters"] == {"there": "/a"}
    assert [one["id"] for one in server.get("/v1/models").json()["data"]] == ["echo", "there"]
    assert unload(server, "other").status_code == 404


def test_a_name_that_is_used_again_is_another_adapter(server: Served) -> None:
    load(server, "a", "/one")
    unload(server, "a")
    load(server, "a", "/two")
    assert server.call(lambda: server.engine.adapters) == {"a#2": "/two"}


@pytest.mark.parametrize("timeout_s", [0.3, 20])
def test_unloading_waits_for_requests_then_ends_them(timeout_s: float) -> None:
    with Served(engine={"step_s": 0.02}) as server:
        load(server, "a")
        answers: list[httpx.Response] = []
        body = {**CHAT, "model": "a", "max_tokens": 60, "ignore_eos": True}

        def ask() -> None:
            answers.append(server.post("/v1/chat/completions", json=body))

        thread = threading.Thread(target=ask)
        thread.start()
        while adapters_of(server) != ["a#1"]:
            time.sleep(0.01)
        assert unload(server, "a", timeout_s=timeout_s).status_code == 200
        thread.join()
        (answer,) = answers
        if timeout_s < 1:
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "adapter_not_found"
            assert "'a' was unloaded" in answer.json()["error"]["message"]
        else:
            assert answer.status_code == 200
        assert server.post("/v1/chat/completions", json=body).status_code == 404


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_loading_needs_the_admin_role(prefix: str) -> None:
    keys = ["ann:user:key-of-ann-0", "ops:admin:key-of-ops"]
    with Served(settings=ServerSettings(port=0, api_keys=keys)) as server:
        body = {"lora_name": "a", "lora_path": "/a"}
        for key, status in (("key-of-ann-0", 403), ("key-of-ops", 200)):
            for verb in ("load", "unload"):
                answer = server.post(
                    f"{prefix}/{verb}_lora_adapter",
                    json=body,
                    headers={"Authorization": f"Bearer {key}"},
                )
                assert answer.status_code == status, answer.text
