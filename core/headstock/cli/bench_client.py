"""An HTTP client that streams completions and costs next to nothing a token.

A load generator must not be what it measures: the parser is C, an event costs one decode of a
small struct, and there is a connection a request.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from headstock.errors import ConfigError

CONNECT_TIMEOUT_S = 30.0
_EVENT_END = b"\n\n"
_DATA = b"data: "
_DONE = b"[DONE]"


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


@dataclass(slots=True)
class Streamed:
    """What came of one request.

    Attributes:
        sent_s: When it was sent; by the performance counter. Seconds.
        arrivals_s: When text came, in order. Seconds.
        ended_s: When the answer was over. Seconds.
        prompt_tokens: As the server counted.
        output_tokens: Likewise.
        error: Why it failed; "" when it did not.
    """

    sent_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list[float])
    ended_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""

    @property
    def ttft_s(self) -> float:
        """From sending to the first token. Seconds."""
        return self.arrivals_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time a token after the first; None for answers of one. Seconds."""
        if self.output_tokens < 2:
            return None
        return (self.arrivals_s[-1] - self.arrivals_s[0]) / (self.output_tokens - 1)


class Target:
    """Where completions are asked for.

    Args:
        url: Of the server, without ``/v1``.
        headers: Sent with each request.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ConfigError(
                f"{url} is not a URL of a server.", remedy="Write it as http://host:port."
            )
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        lines = {
            "host": parts.netloc.rpartition("@")[2],
            "content-type": "application/json",
            "accept": "text/event-stream",
            "connection": "close",
            **headers,
        }
        self._head = f"POST {parts.path.rstrip('/')}/v1/completions HTTP/1.1\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in lines.items()
        )

    async def complete(self, body: dict[str, Any]) -> Streamed:
        """Stream one completion; what goes wrong is in the answer, never raised."""
        content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        data = content.encode()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                transport, stream = await loop.create_connection(
                    _Stream, self._host, self._port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            return Streamed(error=f"no connection: {error or 'timed out'}")
        try:
            stream.result.sent_s = time.perf_counter()
            transport.write(f"{self._head}content-length: {len(data)}\r\n\r\n".encode() + data)
            return await stream.over
        finally:
            transport.close()


class _Stream(asyncio.Protocol):
    """One response: parsed as it comes."""

    def __init__(self) -> None:
        self.result = Streamed()
        self.over: asyncio.Future[Streamed] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._now_s = 0.0
        self._is_done = False

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._now_s = time.perf_counter()
        self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        """Take in a piece of the body; called by the parser."""
        self._rest += body
        if self._parser.get_status_code() != 200:
            return
        *events, self._rest = self._rest.split(_EVENT_END)
        for event in events:
            if event.startswith(_DATA):
                self._take(event[len(_DATA) :])

    def on_message_complete(self) -> None:
        """Take note of the end; called by the parser."""
        status = self._parser.get_status_code()
        if status not in (0, 200):
            self._end(f"status {status}: {self._rest[:300].decode(errors='replace')}")
        elif not self._is_done:
            self._end("the stream broke off")
        elif not self.result.arrivals_s:
            self._end("the answer has no tokens")
        else:
            self._end("")

    def _take(self, data: bytes) -> None:
        if data == _DONE:
            self._is_done = True
            return
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            self._end(f"not a completion: {error}")
            return
        if chunk.error is not None:
            self._end(chunk.error.message)
        if chunk.usage is not None:
            self.result.prompt_tokens = chunk.usage.prompt_tokens
            self.result.output_tokens = chunk.usage.completion_tokens
        if any(choice.text or choice.finish_reason is None for choice in chunk.choices):
            self.result.arrivals_s.append(self._now_s)

    def _end(self, error: str) -> None:
        if not self.over.done():
            self.result.error = error
            self.result.ended_s = self._now_s
            self.over.set_result(self.result)
