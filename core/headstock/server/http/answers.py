"""Writing answers: JSON by msgspec, one envelope for every error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.errors import message_of, retry_after_of, status_of, type_of

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "request_timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    501: "invalid_request_error",
    503: "overloaded_error",
}
encode = msgspec.json.Encoder().encode


class ErrorDetail(msgspec.Struct):
    """What went wrong, in words and in names that do not change."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct):
    """Every error of every route but those of the protocols below."""

    error: ErrorDetail


class AnthropicErrorDetail(msgspec.Struct):
    """What went wrong, as Anthropic's clients read it."""

    type: str
    message: str


class AnthropicErrorAnswer(msgspec.Struct):
    """Every error of Anthropic's routes."""

    type: str
    error: AnthropicErrorDetail


class OllamaErrorAnswer(msgspec.Struct):
    """Every error of Ollama's routes."""

    error: str


Envelope = ErrorAnswer | AnthropicErrorAnswer | OllamaErrorAnswer


def json_answer(
    value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return ``value`` as JSON."""
    return Response(
        encode(value), status_code=status, headers=headers, media_type="application/json"
    )


def error_value(error: RequestError) -> ErrorAnswer:
    """Return the envelope of ``error``."""
    status = status_of(error.code)
    return ErrorAnswer(ErrorDetail(message_of(error), type_of(status), error.field, error.code))


def error_answer(error: RequestError, path: str = "") -> Response:
    """Return ``error`` with its status, and Retry-After where trying again helps.

    Args:
        error: What went wrong.
        path: Of the request: each protocol has an envelope of its own.
    """
    headers: dict[str, str] = {}
    retry_after_s = retry_after_of(error)
    if retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(retry_after_s))
    if error.code in ("body_too_large", "request_timeout"):
        headers["connection"] = "close"  # the rest of the body would still come
    if error.code == "invalid_api_key":
        headers["www-authenticate"] = "Bearer"
    return json_answer(_enveloped(error, path), status=status_of(error.code), headers=headers)


def _enveloped(error: RequestError, path: str) -> Envelope:
    kind = envelope_of(path)
    if kind is AnthropicErrorAnswer:
        return anthropic_error(error)
    return OllamaErrorAnswer(message_of(error)) if kind is OllamaErrorAnswer else error_value(error)


def envelope_of(path: str) -> type[Envelope]:
    """Return what errors of a route are written in: each protocol has an envelope of its own."""
    if path.startswith("/v1/messages"):
        return AnthropicErrorAnswer
    return OllamaErrorAnswer if path.startswith("/api/") else ErrorAnswer


def anthropic_error(error: RequestError) -> AnthropicErrorAnswer:
    """Return the envelope of ``error`` on Anthropic's routes."""
    kind = _ANTHROPIC_TYPES.get(status_of(error.code), "api_error")
    return AnthropicErrorAnswer("error", AnthropicErrorDetail(kind, message_of(error)))
