"""A client that costs next to nothing: what it takes of the machine, the server cannot have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit


class ThinClient:
    """Posts JSON on kept connections, as many as there are requests at once.

    Args:
        url: The server's.
        timeout_s: For an answer.
    """

    def __init__(self, url: str, timeout_s: float = 120.0) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._timeout_s = timeout_s
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def post(self, path: str, body: Any) -> tuple[int, Mapping[str, str]]:
        """Return the status and the headers, their names in lower case, of an answer.

        Raises:
            OSError: There is none: the connection failed, or it took too long.
        """
        connection = (
            self._idle.pop() if self._idle else await asyncio.open_connection(*self._address)
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._exchange(*connection, path, json.dumps(body).encode())
        except (asyncio.IncompleteReadError, ValueError) as error:
            connection[1].close()
            raise ConnectionError(f"no answer: {error}") from error
        except BaseException:
            connection[1].close()
            raise
        self._idle.append(connection)
        return answer

    async def aclose(self) -> None:
        """Close the connections that no request uses."""
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, body: bytes
    ) -> tuple[int, Mapping[str, str]]:
        host, port = self._address
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip() for name, value in pairs}
        await reader.readexactly(int(headers["content-length"]))
        return int(first.split(" ")[1]), headers
