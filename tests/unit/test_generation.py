"""Completions of a call, taken one by one as they end."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.server.completion import Delta
from headstock.server.generation import Generation


def end(kind: str, message: str = "") -> Any:
    return SimpleNamespace(reason=FinishReason(kind, message=message))


def generation(count: int) -> tuple[Generation, list[Generation]]:
    aborted: list[Generation] = []
    completions: list[Any] = [f"completion {n}" for n in range(count)]
    return Generation(completions, is_streamed=True, abort=aborted.append), aborted


def test_completions_come_in_the_order_of_their_ends() -> None:
    async def run() -> list[tuple[int, Any]]:
        call, _ = generation(3)
        seen: list[tuple[int, Any]] = []

        async def take() -> None:
            async for index, completion in call.ended():
                seen.append((index, completion))

        taking = asyncio.create_task(take())
        for index in (2, 0, 1):
            call.put([Delta(index, "", 0, end("stop"))])
            call.wake()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(seen) >= 1, "the first is there before the last has ended"
        await taking
        return seen

    seen = asyncio.run(run())
    assert seen == [(2, "completion 2"), (0, "completion 0"), (1, "completion 1")]


def test_one_that_fails_ends_the_others() -> None:
    async def run() -> None:
        call, aborted = generation(3)
        call.put([Delta(1, "", 0, end("stop")), Delta(0, "", 0, end("error", "no"))])
        call.wake()
        with pytest.raises(RequestError, match="no"):
            [each async for each in call.ended()]
        assert aborted == [call]

    asyncio.run(run())
