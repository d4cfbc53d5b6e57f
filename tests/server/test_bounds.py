"""No integer of a body is unbounded, and none that the wire cannot carry gets further."""

from types import SimpleNamespace

import httpx
import msgspec
import pytest
from msgspec import inspect as types

from headstock.requests import SamplingParams
from headstock.server.http.app import BODIES
from tests.server.conftest import Served
from tests.server.test_supervisor import SupervisedServer

HUGE = [2**63, 2**64, -(2**63) - 1, 10**30, 10**5000]


def unbounded(described, path, seen):
    """Yield the paths of integers without both bounds."""
    match described:
        case types.StructType(cls=cls, fields=fields):
            if cls not in seen:
                for field in fields:
                    yield from unbounded(field.type, f"{path}.{field.name}", {*seen, cls})
        case types.IntType(gt=gt, ge=ge, lt=lt, le=le):
            if (gt is None and ge is None) or (lt is None and le is None):
                yield path
        case types.UnionType(types=members):
            for member in members:
                yield from unbounded(member, path, seen)
        case types.DictType(key_type=key, value_type=value):
            yield from unbounded(key, f"{path}.key", seen)
            yield from unbounded(value, f"{path}.value", seen)
        case types.Metadata(type=inner):
            yield from unbounded(inner, path, seen)
        case _ if hasattr(described, "item_type"):
            yield from unbounded(described.item_type, f"{path}[]", seen)
        case _ if hasattr(described, "item_types"):
            for inner in described.item_types:
                yield from unbounded(inner, f"{path}[]", seen)
        case _:
            pass


@pytest.mark.parametrize("body", [*BODIES, SamplingParams], ids=lambda body: body.__name__)
def test_every_integer_of_a_body_has_a_least_and_a_largest_value(body):
    assert list(unbounded(types.type_info(body), body.__name__, set())) == []


def test_the_walk_finds_what_it_looks_for():
    class Loose(msgspec.Struct):
        value: list[dict[str, int] | None]

    assert list(unbounded(types.type_info(Loose), "Loose", set())) == ["Loose.value[].value"]


def integers(described, path=(), seen=frozenset()):
    """Yield where integers stand in a body; once for a struct that holds itself."""
    match described:
        case types.StructType(cls=cls, fields=fields):
            if cls not in seen:
                for field in fields:
                    yield from integers(field.type, (*path, field.encode_name), seen | {cls})
        case types.IntType():
            yield path
        case types.UnionType(types=members):
            for member in members:
                yield from integers(member, path, seen)
        case types.Metadata(type=inner):
            yield from integers(inner, path, seen)
        case _ if hasattr(described, "item_type"):
            yield from integers(described.item_type, (*path, []), seen)
        case _:
            pass


def placed(path, value):
    for step in reversed(path):
        value = [value] if step == [] else {step: value}
    return value


ROUTES = {
    "ChatBody": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    "CompletionBody": ("/v1/completions", {"prompt": "x"}),
    "MessagesBody": (
        "/v1/messages",
        {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    ),
    "CountBody": ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "x"}]}),
    "ResponsesBody": ("/v1/responses", {"input": "x"}),
    "OllamaChatBody": ("/api/chat", {"model": "echo", "messages": []}),
    "OllamaGenerateBody": ("/api/generate", {"model": "echo"}),
    "GenerateBody": ("/generate", {"text": "x"}),
    "TokenizeBody": ("/tokenize", {"prompt": "x"}),
    "DetokenizeBody": ("/detokenize", {"tokens": [1]}),
    "ProgramBody": ("/v1/programs", {"steps": [{"type": "text", "text": "x"}]}),
    "EmbeddingsBody": ("/v1/embeddings", {"input": "x"}),
    "CohereEmbedBody": ("/v2/embed", {"texts": ["x"]}),
    "OllamaEmbedBody": ("/api/embed", {"model": "echo", "input": "x"}),
    "OllamaEmbeddingsBody": ("/api/embeddings", {"model": "echo", "prompt": "x"}),
    "EncodeBody": ("/encode", {"text": "x"}),
    "PoolingBody": ("/pooling", {"input": "x"}),
    "RerankBody": ("/v1/rerank", {"query": "x", "documents": ["x"]}),
    "ScoreBody": ("/v1/score", {"query": "x", "items": ["x"], "label_token_ids": [1]}),
    "ClassifyBody": ("/v1/classify", {"input": "x"}),
    "OpenSessionBody": ("/open_session", {"capacity_of_str_len": 8}),
    "AbortBody": ("/abort_request", {"rid": "x"}),
    "StartProfileBody": ("/start_profile", {}),
    "GetWeightBody": ("/get_weights_by_name", {"name": "x"}),
}
PLACES = [(body.__name__, path) for body in BODIES for path in integers(types.type_info(body))]


@pytest.fixture(scope="module")
def supervised():
    with SupervisedServer() as server:
        yield server


@pytest.mark.parametrize(("name", "path"), PLACES, ids=str)
def test_a_huge_integer_anywhere_is_refused_and_the_next_request_is_served(supervised, name, path):
    route, body = ROUTES[name]
    for value in HUGE:
        text = msgspec.json.encode({**body, **placed(path, "@")}).decode()
        text = text.replace('"@"', str(value) if abs(value) < 10**40 else "1" + "0" * 5000)
        answer = httpx.post(
            supervised.url + route,
            content=text,
            headers={"content-type": "application/json"},
            timeout=5,
        )
        assert answer.status_code == 400, (value, answer.text[:200])
    served = supervised.post("/generate", {"text": "x", "sampling_params": {"max_new_tokens": 1}})
    assert served.status_code == 200


def test_what_cannot_be_sent_fails_its_own_request_only(supervised, monkeypatch):
    body = {"text": "x", "sampling_params": {"max_new_tokens": 1}}
    with monkeypatch.context() as patch:
        drawn = SimpleNamespace(hex=2**70)
        patch.setattr("headstock.server.admission.uuid", SimpleNamespace(uuid4=lambda: drawn))
        answer = supervised.post("/generate", body)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "cannot be sent to the engine" in answer.json()["error"]["message"]
    assert supervised.call(lambda: supervised.frontdoor.num_live) == 0
    assert supervised.post("/generate", body).status_code == 200


def test_an_engine_that_takes_nothing_in_is_not_ready():
    with Served() as server:
        assert server.get("/ready").status_code == 200
        server.engine.unheard_s = 6.0
        assert server.get("/ready").status_code == 503
        refused = server.post("/generate", {"text": "x"})
        assert refused.status_code == 503
        assert "does not take in" in refused.json()["error"]["message"]
        server.engine.unheard_s = 0.0
        assert server.post("/generate", {"text": "x"}).status_code == 200


def test_an_engine_that_is_silent_gets_no_request():
    with Served() as server:
        server.frontdoor.status.silence_limit_s = -1.0
        refused = server.post("/generate", {"text": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
