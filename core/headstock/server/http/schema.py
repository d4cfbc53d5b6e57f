"""OpenAPI: the schemas of our structs in FastAPI's document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from headstock.server.http.answers import ErrorAnswer
from headstock.server.protocols.messages import MAX_MESSAGES

_EXACTLY_ONE = {"GenerateBody": ("text", "input_ids"), "TokenizeBody": ("prompt", "messages")}
_REF = "#/components/schemas/{name}"


def body_of(
    kind: type[msgspec.Struct], answer: type[msgspec.Struct] | None = None
) -> dict[str, Any]:
    """Return what a route adds to the document: a JSON body of ``kind``, and its answer."""
    extra: dict[str, Any] = {"requestBody": {"required": True, **_content(kind)}}
    if answer is not None:
        extra["responses"] = {"200": {"description": "The answer.", **_content(answer)}}
    return extra


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    reference = {"$ref": _REF.format(name=kind.__name__)}
    return {"content": {"application/json": {"schema": reference}}}


def install(app: FastAPI, kinds: Sequence[type[msgspec.Struct]], vocab_size: int) -> None:
    """Make ``app`` describe itself with our schemas, once it is asked.

    Args:
        app: With all its routes.
        kinds: The structs that :func:`body_of` was called with.
        vocab_size: Ids the model has.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app, kinds, vocab_size)
        return app.openapi_schema

    app.openapi = describe


def _describe(
    app: FastAPI, kinds: Sequence[type[msgspec.Struct]], vocab_size: int
) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"] = _responses(operation.get("responses", {}))
    _, schemas = msgspec.json.schema_components([*kinds, ErrorAnswer], ref_template=_REF)
    _tighten(schemas, vocab_size)
    document["components"] = {
        "schemas": schemas,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    }
    return document


def _tighten(schemas: dict[str, Any], vocab_size: int) -> None:
    """Say of bodies what the validator checks and the types do not tell."""
    for name, choices in _EXACTLY_ONE.items():
        if name in schemas:
            schemas[name]["oneOf"] = [
                {"required": [choice], "properties": {choice: {"not": {"type": "null"}}}}
                for choice in choices
            ]
    for name in ("ChatBody", "TokenizeBody"):
        messages = schemas[name]["properties"]["messages"]
        for option in messages.get("anyOf", [messages]):
            if option.get("type") == "array":
                option |= {"minItems": 1, "maxItems": MAX_MESSAGES}
    for option in schemas["CompletionBody"]["properties"]["prompt"]["anyOf"]:
        option |= {"array": {"minItems": 1}, "string": {"minLength": 1}}.get(option["type"], {})
    items = schemas["DetokenizeBody"]["properties"]["tokens"]["items"]["anyOf"]
    for option in items:
        option.get("items", option)["maximum"] = vocab_size - 1


def _responses(known: dict[str, Any]) -> dict[str, Any]:
    """Return an operation's answers: its own success, and our errors."""
    error = _content(ErrorAnswer)
    errors = {
        "400": "The request is at fault.",
        "401": "An API key is missing or wrong.",
        "404": "There is no such model.",
        "408": "The request took too long to arrive.",
        "413": "The body is too large.",
        "429": "The queue is full; see Retry-After.",
        "503": "Not ready; see Retry-After.",
    }
    success = {code: answer for code, answer in known.items() if code.startswith("2")}
    return success | {code: {"description": text, **error} for code, text in errors.items()}
