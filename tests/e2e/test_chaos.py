"""An engine that is killed, or stopped, under full load: nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.e2e.served import Served, served, wait_for
from tests.e2e.tiny import DUMMY

pytestmark = [pytest.mark.chaos, pytest.mark.slow]
RUNNING, QUEUED = 64, 32
OUTPUTS = 80
REFUSED_WITHIN_S = 12.0
"""New work is refused at once, or when the engine has been silent for its limit."""


@dataclass
class Told:
    """What one client was told, event by event."""

    events: list[list[int]] = field(default_factory=list)
    finish: Any = None

    @property
    def ids(self) -> list[int]:
        return self.events[-1] if self.events else []


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[Served]:
    flags = [*DUMMY, "--cache-tokens", "32768", "--max-running-requests", str(RUNNING)]
    with served(folder, *flags) as made:
        yield made


def bodies() -> list[dict[str, Any]]:
    """Return requests of which half are greedy and half drawn, each with a prompt of its own."""
    return [
        {
            "input_ids": [3 + i % 50, 7, 11 + i, 5],
            "stream": True,
            "sampling_params": {
                "max_new_tokens": OUTPUTS,
                "ignore_eos": True,
                "temperature": 0.9 * (i % 2),
                "sampling_seed": i,
            },
        }
        for i in range(RUNNING + QUEUED)
    ]


async def follow(client: httpx.AsyncClient, body: dict[str, Any], told: Told) -> None:
    async with client.stream("POST", "/generate", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                told.events.append(event["output_ids"])
                told.finish = event["meta_info"]["finish_reason"]


async def under_load(server: Served, disturb: Any = None) -> list[Told]:
    """Run all requests at once, and ``disturb`` when the engine is full; return what was told."""
    told = [Told() for _ in bodies()]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=200, limits=limits) as client:
        tasks = [
            asyncio.create_task(follow(client, body, each))
            for body, each in zip(bodies(), told, strict=True)
        ]
        if disturb is not None:
            while sum(len(each.events) >= 3 for each in told) < RUNNING // 2:
                await asyncio.sleep(0.02)
            await asyncio.to_thread(disturb)
        await asyncio.gather(*tasks)
    return told


@pytest.fixture(scope="module")
def undisturbed(server: Served) -> list[list[int]]:
    told = asyncio.run(under_load(server))
    assert all(len(each.ids) == OUTPUTS for each in told)
    return [each.ids for each in told]


def check(told: list[Told], undisturbed: list[list[int]]) -> None:
    """Every stream is whole, and only ever grew: no id is lost, changed or told twice."""
    assert [each.ids for each in told] == undisturbed
    for each in told:
        assert each.finish == {"type": "length", "length": OUTPUTS}
        for before, after in zip(each.events, each.events[1:], strict=False):
            assert after[: len(before)] == before


def test_a_kill_under_full_load_loses_nothing(server: Served, undisturbed: list[list[int]]) -> None:
    seen: dict[str, Any] = {}

    def kill() -> None:
        seen["live"] = server.get("/server_info").json()["live_requests"]
        os.kill(server.engine_pid, signal.SIGKILL)
        begun_s = time.monotonic()
        wait_for(lambda: not server.is_ready(), 5, "a server that is not ready")
        answer = server.post("/generate", input_ids=[1], sampling_params={"max_new_tokens": 1})
        seen["status"], seen["took_s"] = answer.status_code, time.monotonic() - begun_s

    told = asyncio.run(under_load(server, kill))
    assert seen["live"] > RUNNING  # some were waiting
    assert seen["status"] == 503
    assert seen["took_s"] < REFUSED_WITHIN_S
    check(told, undisturbed)
    state = server.idle_state()
    assert state["free_pages"] + state["cached_pages"] == state["total_pages"]


def test_two_kills_one_after_another_lose_nothing_either(
    server: Served, undisturbed: list[list[int]]
) -> None:
    def kill_twice() -> None:
        for _ in range(2):
            wait_for(server.is_ready, 60, "readiness")
            time.sleep(0.3)  # all have been sent again, and some have drawn
            os.kill(server.engine_pid, signal.SIGKILL)
            wait_for(lambda: not server.is_ready(), 5, "a server that is not ready")

    check(asyncio.run(under_load(server, kill_twice)), undisturbed)


def test_an_engine_that_stands_still_gets_no_new_work_and_goes_on_where_it_stood(
    server: Served, undisturbed: list[list[int]]
) -> None:
    wait_for(server.is_ready, 60, "readiness")
    pid = server.engine_pid
    seen: dict[str, Any] = {}

    def stop() -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            begun_s = time.monotonic()
            wait_for(lambda: not server.is_ready(), REFUSED_WITHIN_S, "a server that says so")
            answer = server.post("/generate", input_ids=[1], sampling_params={"max_new_tokens": 1})
            seen["status"], seen["took_s"] = answer.status_code, time.monotonic() - begun_s
        finally:
            os.kill(pid, signal.SIGCONT)

    check(asyncio.run(under_load(server, stop)), undisturbed)
    assert seen["status"] == 503
    assert seen["took_s"] < REFUSED_WITHIN_S
    assert server.engine_pid == pid
