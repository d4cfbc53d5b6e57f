"""OpenAPI: the schemas of our structs in FastAPI's document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from headstock.server.http.answers import (
    AnthropicErrorAnswer,
    ErrorAnswer,
    OllamaErrorAnswer,
    envelope_of,
)
from headstock.server.protocols.messages import MAX_MESSAGES

_EXACTLY_ONE = {"GenerateBody": ("text", "input_ids"), "TokenizeBody": ("prompt", "messages")}
_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "The request is at fault.",
    "401": "An API key is missing or wrong.",
    "403": "The key, the host or the origin may not do this.",
    "404": "There is no such model, adapter or answer.",
    "408": "The request took too long to arrive.",
    "409": "Somebody else is reading this stream.",
    "413": "The body is too large.",
    "429": "The queue is full, or the key's quota is used up; see Retry-After.",
    "500": "The computation or the server failed on this request.",
    "501": "This version does not have what was asked for.",
    "503": "Not ready; see Retry-After.",
    "507": "There is no room to keep what was sent.",
}
_BODY_ERRORS = {"415": "The body's content type is none that the route takes."}


def body_of(
    kind: type[msgspec.Struct], answer: type[msgspec.Struct] | None = None
) -> dict[str, Any]:
    """Return what a route adds to the document: a JSON body of ``kind``, and its answer."""
    extra: dict[str, Any] = {"requestBody": {"required": True, **_content(kind)}}
    if answer is not None:
        extra["responses"] = {"200": {"description": "The answer.", **_content(answer)}}
    return extra


def _content(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": _reference(kind)}}}


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}


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
    envelopes = (ErrorAnswer, AnthropicErrorAnswer, OllamaErrorAnswer)
    _, schemas = msgspec.json.schema_components([*kinds, *envelopes], ref_template=_REF)
    _tighten(schemas, vocab_size)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["responses"] = _responses(path, operation, schemas)
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


def _responses(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return an operation's answers: its own success, streamed where it may be, and our errors."""
    known: dict[str, Any] = operation.get("responses", {})
    success = {code: answer for code, answer in known.items() if code.startswith("2")}
    errors = _ERRORS
    if any(each["name"] == "stream" for each in operation.get("parameters", ())):
        success["200"].setdefault("content", {})["text/event-stream"] = {}
    if "requestBody" in operation:
        errors = _ERRORS | _BODY_ERRORS
        content = operation["requestBody"]["content"].get("application/json", {})
        name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if "stream" in schemas.get(name, {}).get("properties", {}):
            streamed = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"
            for answer in success.values():
                answer.setdefault("content", {})[streamed] = {}
    envelope = {"content": {"application/json": {"schema": _reference(envelope_of(path))}}}
    return success | {code: {"description": text, **envelope} for code, text in errors.items()}
