"""The client of the trials knows a connection that was closed from a request without an answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from reliability_parts.thin_client import ThinClient  # pyright: ignore[reportMissingImports]

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n%b\r\n{}"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length"))
    await reader.readexactly(int(length.split(b":")[1]))


class OneAnswer:
    """Answers the first request of a connection, and does something with the second."""

    def __init__(self, second: Serve, header: bytes = b"") -> None:
        self.second = second
        self.header = header
        self.connections = 0
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await read_request(reader)
            writer.write(ANSWER % self.header)
            await self.second(reader, writer)
        finally:
            writer.close()
            self.ended.set()


async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What a server does whose keep-alive time is over."""


async def close_on_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, just as a request comes."""
    await reader.read(1)


async def answer_in_part(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await read_request(reader)
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-le")


async def ask_twice(handler: OneAnswer, waits: bool) -> ThinClient:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    client = ThinClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=10)
    async with server:
        assert (await client.post("/", {}))[0] == 200
        if waits:
            await handler.ended.wait()
            await asyncio.sleep(0.1)
        try:
            assert (await client.post("/", {}))[0] == 200
        finally:
            await client.aclose()
    return client


def test_a_connection_that_the_server_closed_is_not_used() -> None:
    async def run() -> None:
        handler = OneAnswer(close_at_once)
        client = await ask_twice(handler, waits=True)
        assert (handler.connections, client.num_retried) == (2, 0)

    asyncio.run(run())


def test_an_answer_that_ends_its_connection_is_believed() -> None:
    async def run() -> None:
        handler = OneAnswer(close_on_request, b"connection: close\r\n")
        client = await ask_twice(handler, waits=False)
        assert (handler.connections, client.num_retried) == (2, 0)

    asyncio.run(run())


def test_a_request_that_met_the_close_is_sent_once_more_and_counted() -> None:
    async def run() -> None:
        handler = OneAnswer(close_on_request)
        client = await ask_twice(handler, waits=False)
        assert (handler.connections, client.num_retried) == (2, 1)

    asyncio.run(run())


def test_half_an_answer_is_no_answer_and_not_asked_for_again() -> None:
    async def run() -> None:
        handler = OneAnswer(answer_in_part)
        with pytest.raises(ConnectionError, match="no whole answer"):
            await ask_twice(handler, waits=False)
        assert handler.connections == 1

    asyncio.run(run())
