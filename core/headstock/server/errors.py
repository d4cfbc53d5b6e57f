"""Errors that a caller sees, and the HTTP status each one has.

Words come from our own catalogue, never from an exception of a library.
"""

from __future__ import annotations

from headstock.errors import RequestError
from headstock.requests import FinishReason

_STATUS = {
    "invalid_api_key": 401,
    "forbidden": 403,
    "host_not_allowed": 403,
    "origin_not_allowed": 403,
    "model_not_found": 404,
    "not_found": 404,
    "adapter_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "body_too_large": 413,
    "too_many_values": 413,
    "uri_too_long": 414,
    "invalid_content_type": 415,
    "queue_full": 429,
    "rate_limit_exceeded": 429,
    "slow_client": 408,
    "stream_taken": 409,
    "computation_failed": 500,
    "not_implemented": 501,
    "internal_error": 500,
    "asleep": 503,
    "engine_lost": 503,
    "engine_unavailable": 503,
    "template_unavailable": 503,
    "too_many_connections": 503,
    "server_draining": 503,
    "storage_full": 507,
}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
DEFAULT_RETRY_S = 5.0
"""Retry-After where nothing better is known. Seconds."""


class BusyError(RequestError):
    """Nothing is wrong with the request; it cannot be served now.

    Args:
        problem: Why not.
        code: ``queue_full``, ``rate_limit_exceeded``, ``engine_unavailable``, ``engine_lost``,
            ``asleep`` or ``server_draining``.
        retry_after_s: When to try again. Seconds.
    """

    def __init__(self, problem: str, *, code: str, retry_after_s: float) -> None:
        super().__init__(problem, remedy=f"Try again in {retry_after_s:.0f} s.", code=code)
        self.retry_after_s = retry_after_s


def status_of(code: str) -> int:
    """Return the HTTP status of an error code; 400 where nothing else is said."""
    return _STATUS.get(code, 400)


def type_of(status: int) -> str:
    """Return the OpenAI error type that goes with an HTTP status."""
    if status in _TYPES:
        return _TYPES[status]
    return "invalid_request_error" if status < 500 else "server_error"


def retry_after_of(error: RequestError) -> float | None:
    """Return when to try again, or None when that would not help. Seconds."""
    if isinstance(error, BusyError):
        return error.retry_after_s
    return DEFAULT_RETRY_S if status_of(error.code) in (429, 503) else None


def error_of(reason: FinishReason) -> RequestError:
    """Return the error that a request ended with.

    Args:
        reason: One of kind ``error``.
    """
    code = reason.code or "internal_error"
    if reason.retry_after_s is not None or status_of(code) in (429, 503):
        retry_after_s = DEFAULT_RETRY_S if reason.retry_after_s is None else reason.retry_after_s
        return BusyError(reason.message, code=code, retry_after_s=retry_after_s)
    return RequestError(reason.message, remedy="", field=reason.field, code=code)


def reason_of(error: RequestError) -> FinishReason:
    """Return the end of a request that ``error`` stopped."""
    if isinstance(error, BusyError):  # its remedy is made of when to try again
        return FinishReason(
            kind="error",
            message=error.problem,
            code=error.code,
            retry_after_s=error.retry_after_s,
        )
    return FinishReason(kind="error", message=message_of(error), code=error.code, field=error.field)


def message_of(error: RequestError) -> str:
    """Return problem and remedy on one line."""
    return f"{error.problem} {error.remedy}".strip()


def killer() -> RequestError:
    """Return the error of a request that the engine died of, alone."""
    return RequestError(
        "The engine died of this request, twice.",
        remedy="Report it; the server's log has the reason.",
        code="computation_failed",
    )


def defect() -> RequestError:
    """Return the error of a request that met a defect of ours."""
    return RequestError(
        "The server failed on this request.", remedy="Try again.", code="internal_error"
    )
