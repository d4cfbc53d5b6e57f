"""A server that is asked over HTTP: requests, refusals, another try, events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import httpx
import msgspec

from headstock.errors import RequestError

CONNECT_S = 10.0
MAX_CONNECTIONS = 256
TRIES = 8
"""How often a request is sent that a server is too busy for."""
BUSY = frozenset({429, 502, 503, 529})
WAITS_S = (0.25, 30.0)
_DATA = "data:"


class _Detail(msgspec.Struct):
    message: str = "The server failed."
    code: str | int | None = None
    param: str | None = None
    type: str | None = None


class _Refusal(msgspec.Struct):
    error: _Detail | str


class Endpoint:
    """One server.

    Args:
        url: Its base URL.
        headers: Of each request.
        timeout_s: For an answer, or the next event of one; None: as long as it takes.
        client: Sends the requests; None: one of its own. Its loop must be the language's.
    """

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        timeout_s: float | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._headers = dict(headers)
        self._timeout = httpx.Timeout(timeout_s, connect=CONNECT_S)
        self._client = client
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)

    async def post(self, path: str, body: Any) -> Any:
        """Return the JSON that ``body`` is answered with.

        Raises:
            RequestError: The server refuses, is not there, or is busy for too long.
        """
        async with self._answer("POST", path, body) as answer:
            return _decode(await answer.aread())

    async def get(self, path: str) -> Any:
        """Return the JSON at ``path``.

        Raises:
            RequestError: As :meth:`post`.
        """
        async with self._answer("GET", path, None) as answer:
            return _decode(await answer.aread())

    async def events(self, path: str, body: Any) -> AsyncGenerator[str]:
        """Yield the data of each event that ``body`` is answered with, but the last, ``[DONE]``.

        Raises:
            RequestError: As :meth:`post`, or the stream says that it ends in an error.
        """
        async with self._answer("POST", path, body) as answer:
            with self._unbroken():
                async for line in answer.aiter_lines():
                    if not line.startswith(_DATA):
                        continue
                    data = line[len(_DATA) :].strip()
                    if data == "[DONE]":
                        return
                    if data.startswith('{"error"'):
                        raise _refused(answer.status_code, data.encode())
                    yield data

    async def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            await self._client.aclose()

    @contextlib.asynccontextmanager
    async def _answer(self, method: str, path: str, body: Any) -> AsyncIterator[httpx.Response]:
        """Yield a good answer, trying again while the server is busy."""
        client = self._client
        if client is None:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=MAX_CONNECTIONS)
            # The environment's proxies are left out: most servers here are near.
            client = httpx.AsyncClient(limits=limits, timeout=self._timeout, trust_env=False)
            self._client = client
        content = None if body is None else msgspec.json.encode(body)
        headers = {**self._headers, "content-type": "application/json"}
        for tried in range(1, TRIES + 1):
            async with self._places:
                with self._unbroken():
                    request = client.build_request(
                        method, self.url + path, content=content, headers=headers
                    )
                    answer = await client.send(request, stream=True)
                try:
                    if answer.status_code < 400:
                        yield answer
                        return
                    with self._unbroken():
                        refusal = _refused(answer.status_code, await answer.aread())
                    if answer.status_code not in BUSY or tried == TRIES:
                        raise refusal
                finally:
                    await answer.aclose()
            await asyncio.sleep(_wait_s(answer, tried))

    @contextlib.contextmanager
    def _unbroken(self) -> Any:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            what = str(error) or type(error).__name__
            raise RequestError(
                f"{self.url} does not answer: {what}.",
                remedy="Check that the server runs, and its URL.",
                code="unreachable",
            ) from error


def _wait_s(answer: httpx.Response, tried: int) -> float:
    low, high = WAITS_S
    header = answer.headers.get("retry-after", "")
    wanted = float(header) if header.replace(".", "", 1).isdigit() else low * 2**tried
    return min(high, max(low, wanted))


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise RequestError(
            f"The server's answer is not JSON: {error}.", remedy="Check its URL.", code="bad_answer"
        ) from error


def _refused(status: int, body: bytes) -> RequestError:
    try:
        refusal = msgspec.json.decode(body, type=_Refusal).error
    except msgspec.DecodeError:
        refusal = _Detail(message=body[:200].decode(errors="replace") or "It says nothing more.")
    if isinstance(refusal, str):
        refusal = _Detail(message=refusal)
    code = refusal.code or refusal.type or status
    return RequestError(
        refusal.message,
        remedy=f"The server answered with status {status}.",
        field=refusal.param,
        code=str(code),
    )
