"""Reading bodies: bounded in size, depth and time, and decoded once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Generator, Mapping
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from starlette.requests import ClientDisconnect, Request

from headstock.errors import RequestError
from headstock.server.protocols.parameters import from_validation, not_yet

BODY_DEADLINE_S = 60.0
"""A body that takes longer to arrive is refused. Seconds."""
MAX_DEPTH = 64
IGNORED = "headstock.ignored"
"""Where a request's scope has the keys of its body that were not looked at."""
_KEYS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_UNSET = frozenset({b"null", b"false", b"[]", b"{}", b'""', b"0", b"0.0", b"1", b"1.0"})
"""Values that ask for nothing."""
MIN_SIGNS = 1 << 16
SIGNS = {"commas": (b",", 8), "opening [ and {": (b"[{", 32), "quotes": (b'"', 16)}
"""Signs of values, lists and texts. A body may have one for each so many bytes of the largest body
allowed, and MIN_SIGNS in any case. Parsing holds the interpreter's lock: no other request is
served meanwhile."""
FLAT = ("logit_bias", "metadata", "sampling_params")
MAX_KEYS = 1 << 14
"""Of each of these objects, whose values are short; a microsecond for each."""
INLINE_BYTES = 32 * 1024
"""Smaller bodies are read on the spot: a thread would cost more."""
BODY_BYTES = "headstock.body_bytes"
"""Where a request's scope has the size of its body."""
Value = TypeVar("Value")
Body = TypeVar("Body", bound=msgspec.Struct)


async def read_body(
    request: Request,
    kind: type[Body],
    max_bytes: int,
    *,
    is_any_type: bool = False,
    may_be_empty: bool = False,
) -> Body:
    """Return the request's JSON body as a ``kind``.

    Args:
        request: Whose.
        kind: What it is decoded to.
        max_bytes: Largest one.
        is_any_type: Whether it may come under any content type.
        may_be_empty: Whether no body at all is one with every default.

    Raises:
        RequestError: Not JSON, too large, too deep, too slow, or not of this shape.
        ClientDisconnect: The client left before the body was there.
    """
    if not is_any_type and not (may_be_empty and "content-type" not in request.headers):
        _check_json(request)
    body = await _read(request, max_bytes)
    if may_be_empty and not body:
        body = b"{}"
    request.scope[BODY_BYTES] = len(body)
    return await _decoded(request, body, kind, max_bytes)


async def read_one_of(
    request: Request, kinds: Mapping[str, type[msgspec.Struct]], max_bytes: int
) -> msgspec.Struct:
    """Return the request's JSON body as the kind whose key it has.

    Args:
        request: Whose.
        kinds: The kinds, each by a key that the others do not have.
        max_bytes: Largest body.

    Raises:
        RequestError: It has none of the keys, or several; and as :func:`read_body`.
    """
    _check_json(request)
    body = await _read(request, max_bytes)
    request.scope[BODY_BYTES] = len(body)
    kind = kinds[await off_loop(len(body), _one_key, body, tuple(kinds))]
    return await _decoded(request, body, kind, max_bytes)


async def off_loop(num_bytes: int, function: Callable[..., Value], *args: Any) -> Value:
    """Return what ``function`` makes of a body: in a thread, unless the body is small.

    Python code in a thread lets the event loop turn every few milliseconds.

    Args:
        num_bytes: Size of the body.
        function: Takes time in proportion to it.
        args: Its arguments.
    """
    if num_bytes < INLINE_BYTES:
        return function(*args)
    return await asyncio.to_thread(function, *args)


def body_bytes(request: Request) -> int:
    """Return the size of the body that :func:`read_body` read."""
    return request.scope[BODY_BYTES]


def _check_json(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            f"The content type is {content_type[:64]!r}.",
            remedy="Send JSON with Content-Type: application/json.",
            code="invalid_content_type",
        )


async def _decoded(request: Request, body: bytes, kind: type[Body], max_bytes: int) -> Body:
    value = await off_loop(len(body), _decode, body, kind, max_bytes)
    request.scope[IGNORED] = await off_loop(len(body), _unknown, body, kind)
    return value


def _one_key(body: bytes, keys: tuple[str, ...]) -> str:
    """Return the one of ``keys`` that the JSON object ``body`` has."""
    try:
        sent = _KEYS.decode(body)
    except msgspec.DecodeError:
        return keys[0]  # its kind's decoder says what is wrong
    found = [key for key in keys if key in sent]
    if len(found) != 1:
        raise RequestError(
            f"The body has {' and '.join(found) if found else 'none'} of {', '.join(keys)}.",
            remedy="Send exactly one of these.",
            field=found[-1] if found else keys[0],
            code="missing_prompt",
        )
    return found[0]


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            while True:
                message = await request.receive()
                if message["type"] != "http.request":
                    raise ClientDisconnect
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError as error:
        raise RequestError(
            f"The body did not arrive within {BODY_DEADLINE_S:.0f} s.",
            remedy="Try again.",
            code="request_timeout",
        ) from error


def _check_values(body: bytes, max_bytes: int) -> None:
    """Refuse more values than are soon parsed, by what they are written with; texts count too."""
    if len(body) < INLINE_BYTES:
        return
    for name, (letters, each_bytes) in SIGNS.items():
        count = sum(body.count(letter) for letter in letters)
        most = max(MIN_SIGNS, max_bytes // each_bytes)
        if count > most:
            raise RequestError(
                f"The body has {count} {name}; {most} are taken.",
                remedy="Send less, or raise --max-body-bytes.",
                code="too_many_values",
            )
    try:
        sent = _KEYS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # the kind's decoder says what is wrong
    for field in FLAT:
        if field in sent and (count := bytes(sent[field]).count(b'":')) > MAX_KEYS:
            raise RequestError(
                f"{field} has {count} keys; {MAX_KEYS} are taken.",
                remedy="Send less.",
                field=field,
                code="too_many_values",
            )


def _decode(body: bytes, kind: type[Body], max_bytes: int) -> Body:
    _check_values(body, max_bytes)
    try:
        with _uncollected():
            value: Body = _decoder(kind).decode(body)
    except msgspec.ValidationError as error:
        raise from_validation(error, source=_plain(body)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(
            f"The body is not JSON: {_reason(error, body)}.",
            remedy="Send one JSON object in UTF-8.",
            code="invalid_json",
        ) from error
    except RecursionError as error:
        raise _too_deep() from error
    for name in kind.__struct_fields__:
        _check_depth(getattr(value, name), MAX_DEPTH)
    return value


@contextlib.contextmanager
def _uncollected() -> Generator[None]:
    """Keep the collector from walking again and again over what grows and has no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _unknown(body: bytes, kind: type[msgspec.Struct]) -> list[str]:
    """Return the keys of ``body`` that ``kind`` does not have.

    Raises:
        RequestError: One of them would change the answer, and is set.
    """
    refused: frozenset[str] = getattr(kind, "REFUSES", frozenset())
    sent = _KEYS.decode(body)
    unknown = sent.keys() - kind.__struct_fields__
    for name in sorted(unknown & refused):
        if bytes(sent[name]) not in _UNSET:
            raise not_yet(name)
    return sorted(unknown)


def _plain(body: bytes) -> object:
    """Return a body of another shape as it was sent, for its error; None: it is too deep."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _check_depth(value: Any, left: int) -> None:
    """Refuse free-form values that are nested too deep for those who walk them later."""
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).values()
    elif isinstance(value, list):
        items = cast("list[Any]", value)
    else:
        return
    if left == 0:
        raise _too_deep()
    if isinstance(value, list) and value and isinstance(value[0], int | str | float):
        return
    for item in items:
        _check_depth(item, left - 1)


def _reason(error: Exception, body: bytes) -> str:
    if isinstance(error, UnicodeDecodeError) or "UTF-8" in str(error):  # by msgspec version
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as whole:  # the first counts from where its string begins
            return f"byte {whole.start} is not UTF-8"
    return str(error).removeprefix("JSON is malformed: ")


def _too_deep() -> RequestError:
    return RequestError(
        f"The body is nested more than {MAX_DEPTH} levels deep.",
        remedy="Flatten it.",
        code="body_too_deep",
    )


def _too_large(max_bytes: int) -> RequestError:
    return RequestError(
        f"The body is larger than {max_bytes} bytes.",
        remedy="Send less, or raise --max-body-bytes.",
        code="body_too_large",
    )


@cache
def _decoder(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind)
