"""What outputs must look like, from what callers send: one place for every protocol's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import msgspec

from headstock.errors import RequestError
from headstock.requests import Grammar
from headstock.server.protocols.parameters import not_yet

NATIVE = ("json_schema", "regex", "ebnf", "structural_tag")
"""Fields of SGLang's sampling parameters, named as the kinds they stand for."""
_STRUCTURED_OUTPUTS = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "choice",
    "grammar": "ebnf",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}
"""Keys of vLLM's ``structured_outputs``, and the kinds they stand for."""
_OPENAI = {
    "json_schema": "json_schema",
    "regex": "regex",
    "ebnf": "ebnf",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "ebnf",
}
"""SGLang's names on OpenAI routes and vLLM's older ones, and the kinds they stand for."""
_JSON_KINDS = ("json_schema", "choice", "structural_tag")


class ResponseFormat(msgspec.Struct):
    """The form of the answer: ``text``, ``json_object``, ``json_schema`` or ``structural_tag``."""

    type: str
    json_schema: Any = None
    structures: Any = None
    triggers: Any = None
    format: Any = None


class GrammarFields(Protocol):
    """The fields of an OpenAI body that describe a grammar."""

    response_format: ResponseFormat | None
    json_schema: Any
    regex: Any
    ebnf: Any
    guided_json: Any
    guided_regex: Any
    guided_choice: Any
    guided_grammar: Any
    structured_outputs: Any


def native_grammar(given: Mapping[str, Any]) -> tuple[Grammar | None, Mapping[str, Any]]:
    """Return the grammar among native sampling parameters, and the other parameters.

    Raises:
        RequestError: A grammar of another type, or more than one.
    """
    found = [_grammar(name, name, given[name]) for name in NATIVE if given.get(name) is not None]
    if not any(name in given for name in NATIVE):
        return None, given
    return _only(found), {name: value for name, value in given.items() if name not in NATIVE}


def openai_grammar(body: GrammarFields) -> Grammar | None:
    """Return the grammar that a body of an OpenAI route asks for.

    Raises:
        RequestError: A grammar of another type, or more than one.
    """
    found: list[Grammar] = []
    if body.response_format is not None and body.response_format.type != "text":
        found.append(response_grammar(body.response_format))
    found += [
        _grammar(kind, name, value)
        for name, kind in _OPENAI.items()
        if (value := getattr(body, name)) is not None
    ]
    if body.structured_outputs is not None:
        found += _structured_outputs(body.structured_outputs)
    return _only(found)


def _only(found: list[Grammar]) -> Grammar | None:
    if len(found) > 1:
        first, second = found[0].field, found[1].field
        raise RequestError(
            f"{first} and {second} are both set; an output can obey one of them.",
            remedy="Leave one out.",
            field=second,
        )
    return found[0] if found else None


def response_grammar(wanted: ResponseFormat, field: str = "response_format") -> Grammar:
    """Return the grammar of a form other than ``text``.

    Args:
        wanted: The form.
        field: What the caller calls it.

    Raises:
        RequestError: It is not known, or its schema is missing.
    """
    match wanted.type:
        case "json_object":
            return Grammar("json_object", "", field)
        case "json_schema":
            return _response_schema(wanted.json_schema, field)
        case "structural_tag":
            tags: dict[str, Any] = {"structures": wanted.structures, "triggers": wanted.triggers}
            if wanted.format is not None:
                tags = {"format": wanted.format}
            return _grammar("structural_tag", field, tags)
        case _:
            raise RequestError(
                f"{field}.type is {wanted.type[:64]!r}.",
                remedy="Use text, json_object, json_schema or structural_tag.",
                field=field,
            )


def _response_schema(described: Any, field: str) -> Grammar:
    if not isinstance(described, dict):
        raise _wrong_type(f"{field}.json_schema", "an object with schema", field)
    schema = cast("dict[str, Any]", described).get("schema")
    if schema is None:
        raise RequestError(
            f"{field}.json_schema.schema is missing.",
            remedy="Give the schema there, beside name and strict.",
            field=field,
        )
    return _grammar("json_schema", field, schema)


def _structured_outputs(given: Any) -> list[Grammar]:
    field = "structured_outputs"
    if not isinstance(given, dict):
        raise _wrong_type(field, "an object", field)
    found: list[Grammar] = []
    for name, value in cast("dict[str, Any]", given).items():
        if value is None or value is False:
            continue
        kind = _STRUCTURED_OUTPUTS.get(name)
        if kind is None:
            raise not_yet(f"{field}.{name}"[:128])
        text = "" if kind == "json_object" else value
        found.append(_grammar(kind, f"{field}.{name}", text))
    return found


def _grammar(kind: str, field: str, value: Any) -> Grammar:
    """Return the grammar of ``kind``; schemas, choices and tags may be JSON or text of it."""
    if isinstance(value, str):
        return Grammar(kind, value, field)
    if kind not in _JSON_KINDS:
        raise _wrong_type(field, "a text", field)
    if kind == "choice":
        if not isinstance(value, list):
            raise _wrong_type(field, "a list of texts", field)
    elif not isinstance(value, dict | bool):
        raise _wrong_type(field, "a JSON object, or the text of one", field)
    return Grammar(kind, msgspec.json.encode(value).decode(), field)


def _wrong_type(where: str, what: str, field: str) -> RequestError:
    return RequestError(
        f"{where} is not {what}.", remedy="Send one.", field=field, code="invalid_type"
    )
