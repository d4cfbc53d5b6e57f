"""Every protocol's names for grammars end in one type; what is wrong is named."""

from __future__ import annotations

import json

import msgspec
import pytest

from headstock.errors import RequestError
from headstock.requests import Grammar
from headstock.server.admission import expand
from headstock.server.model_card import ModelCard
from headstock.server.protocols import native_bodies
from headstock.server.protocols.openai_bodies import ChatBody, CompletionBody
from headstock.server.protocols.openai_calls import read_chat, read_completion

CARD = ModelCard(name="m", model_path="/m", max_length=512, vocab_size=1000, eos_ids=[2])
SCHEMA = {"type": "object", "properties": {"b": {}, "a": {}}}
TEXT = '{"type":"object","properties":{"b":{},"a":{}}}'
TAGS = {"structures": [{"begin": "<a>", "schema": {}, "end": "</a>"}], "triggers": ["<a"]}


def chat(**fields) -> Grammar | None:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return read_chat(msgspec.convert(body, ChatBody), CARD).requests[0].grammar


def completion(**fields) -> Grammar | None:
    body = msgspec.convert({"prompt": "hi", **fields}, CompletionBody)
    return read_completion(body, CARD).requests[0].grammar


def generate(**params) -> Grammar | None:
    body = msgspec.convert(
        {"input_ids": [1], "sampling_params": params}, native_bodies.GenerateBody
    )
    return native_bodies.read(body).requests[0].grammar


@pytest.mark.parametrize("call", [chat, completion])
@pytest.mark.parametrize(
    ("fields", "kind", "text", "field"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", "", "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            "json_schema",
            TEXT,
            "response_format",
        ),
        (
            {"response_format": {"type": "structural_tag", **TAGS}},
            "structural_tag",
            msgspec.json.encode(TAGS).decode(),
            "response_format",
        ),
        (
            {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
            "structural_tag",
            '{"format":{"type":"any_text"}}',
            "response_format",
        ),
        ({"json_schema": TEXT}, "json_schema", TEXT, "json_schema"),
        ({"regex": "a+"}, "regex", "a+", "regex"),
        ({"ebnf": "root ::= a"}, "ebnf", "root ::= a", "ebnf"),
        ({"guided_json": SCHEMA}, "json_schema", TEXT, "guided_json"),
        ({"guided_json": TEXT}, "json_schema", TEXT, "guided_json"),
        ({"guided_regex": "a+"}, "regex", "a+", "guided_regex"),
        ({"guided_choice": ["a", "b"]}, "choice", '["a","b"]', "guided_choice"),
        ({"guided_grammar": "start: A"}, "ebnf", "start: A", "guided_grammar"),
        ({"structured_outputs": {"json": SCHEMA}}, "json_schema", TEXT, "structured_outputs.json"),
        (
            {"structured_outputs": {"json_object": True, "regex": None}},
            "json_object",
            "",
            "structured_outputs.json_object",
        ),
        (
            {"structured_outputs": {"choice": ["x"]}},
            "choice",
            '["x"]',
            "structured_outputs.choice",
        ),
    ],
)
def test_each_name_is_honoured(call, fields: dict, kind: str, text: str, field: str) -> None:
    assert call(**fields) == Grammar(kind, text, field)


@pytest.mark.parametrize("call", [chat, completion])
def test_no_grammar_is_none(call) -> None:
    assert call() is None
    assert call(response_format={"type": "text"}, regex=None, structured_outputs={}) is None


@pytest.mark.parametrize("name", ["json_schema", "regex", "ebnf", "structural_tag"])
def test_native_parameters_are_named_as_sglang_names_them(name: str) -> None:
    assert generate(**{name: "{}"}) == Grammar(name, "{}", name)
    assert generate(**{name: None}) is None


def test_native_parameters_beside_a_grammar_are_kept() -> None:
    body = {"input_ids": [1], "sampling_params": {"regex": "a", "max_new_tokens": 7}}
    (request,) = native_bodies.read(msgspec.convert(body, native_bodies.GenerateBody)).requests
    assert request.params.max_new_tokens == 7


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format",
        ),
        ({"regex": 7}, "regex"),
        ({"guided_choice": {"a": 1}}, "guided_choice"),
        ({"guided_json": [1]}, "guided_json"),
        ({"structured_outputs": "json"}, "structured_outputs"),
        (
            {"structured_outputs": {"json": {}, "whitespace_pattern": "x"}},
            "structured_outputs.whitespace_pattern",
        ),
        ({"regex": "a", "guided_regex": "b"}, "guided_regex"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs.regex",
        ),
    ],
)
def test_what_is_wrong_is_named(fields: dict, param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    assert caught.value.field == param


def test_two_native_grammars_are_refused() -> None:
    with pytest.raises(RequestError) as caught:
        generate(regex="a", ebnf="b")
    assert caught.value.field == "ebnf"


def test_a_grammar_goes_with_every_completion_and_is_checked_first() -> None:
    body = {"input_ids": [1], "sampling_params": {"regex": "a{3}", "n": 3}}
    (request,) = native_bodies.read(msgspec.convert(body, native_bodies.GenerateBody)).requests
    submits = expand(request, [1], CARD, 512)
    assert [submit.grammar for submit in submits] == [Grammar("regex", "a{3}", "regex")] * 3
    bad = msgspec.structs.replace(request, grammar=Grammar("json_schema", "[", "guided_json"))
    with pytest.raises(RequestError) as caught:
        expand(bad, [1], CARD, 512)
    assert (caught.value.code, caught.value.field) == ("invalid_grammar", "guided_json")


def test_over_http_a_bad_grammar_is_a_400(served) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "guided_json": json.dumps([1])}
    answer = served.post("/v1/chat/completions", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("guided_json", "invalid_grammar")
