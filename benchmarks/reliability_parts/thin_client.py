"""A client that costs next to nothing: what it takes of the machine, the server cannot have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NoAnswerError(ConnectionError):
    """The connection was closed before anything of the answer came."""


class ThinClient:
    """Posts JSON on kept connections, as many as there are requests at once.

    A server may close a connection that it kept just as a request is sent on it (RFC 9112, section
    9.5). Such a request, of whose answer nothing came, is sent once more, on a new connection: the
    trials' requests may be served twice. How many were is counted.

    Args:
        url: The server's.
        timeout_s: For an answer.

    Attributes:
        num_retried: Requests sent once more.
    """

    def __init__(self, url: str, timeout_s: float = 120.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._timeout_s = timeout_s
        self._idle: list[Connection] = []
        self.num_retried = 0

    async def post(self, path: str, body: Any) -> tuple[int, Mapping[str, str]]:
        """Return the status and the headers, their names in lower case, of an answer.

        Raises:
            OSError: There is none: the connection failed, or it took too long.
        """
        content = json.dumps(body).encode()
        kept = self._take_kept()
        async with asyncio.timeout(self._timeout_s):
            if kept is not None:
                try:
                    return await self._ask(kept, path, content)
                except NoAnswerError:
                    self.num_retried += 1
            return await self._ask(await asyncio.open_connection(*self._address), path, content)

    async def aclose(self) -> None:
        """Close the connections that no request uses."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    def _take_kept(self) -> Connection | None:
        """Return a kept connection that the server has not closed, as far as is known."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and reader.exception() is None:
                return reader, writer
            writer.close()
        return None

    async def _ask(
        self, connection: Connection, path: str, body: bytes
    ) -> tuple[int, Mapping[str, str]]:
        """Ask on ``connection``, and keep it if the answer does not say that it ends."""
        try:
            status, headers = await self._exchange(*connection, path, body)
        except (asyncio.IncompleteReadError, ValueError) as error:
            connection[1].close()
            raise ConnectionError(f"no whole answer: {error}") from error
        except BaseException:
            connection[1].close()
            raise
        if headers.get("connection", "").lower() == "close":
            connection[1].close()
        else:
            self._idle.append(connection)
        return status, headers

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes
    ) -> tuple[int, Mapping[str, str]]:
        host, port = self._address
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            if getattr(error, "partial", b""):
                raise
            raise NoAnswerError("the connection was closed before the answer") from error
        first, *lines = head.rstrip("\r\n").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        await reader.readexactly(int(headers["content-length"]))
        return int(first.split(" ")[1]), headers
