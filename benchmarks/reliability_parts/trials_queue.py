"""The trial of a crowd that waits: R12."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from reliability_parts.memory import anon_mb
from reliability_parts.outcome import Outcome, quantile
from tests.e2e.served import Served, served

QUEUED, ROOM = 10_000, 1000
"""Requests at once; and how many may wait where more come than may."""
AT_ONCE = 100
"""Clients that connect at the same time: their headers must all come before the deadline, on a
machine that does other work too."""
PROBES = 200
KB_EACH, REFUSED_MS, STUCK_S = 25.0, 20.0, 60.0
TIGHT = ("--cache-tokens", "2048", "--max-model-len", "1100")
"""A cache that a warm-up fills, so that what grows afterwards is not its pages."""
CROWD = ("--max-connections", str(QUEUED + 500), "--max-queued-tokens", str(2000 * QUEUED))
PREFIX = [7 + number % 900 for number in range(1000)]


@dataclass
class Answer:
    """What came of one request; status 0: no answer."""

    status: int
    retry_after: str | None
    took_s: float


class Crowd:
    """Clients of one server, each with a connection of its own.

    Args:
        server: Whose.
    """

    def __init__(self, server: Served) -> None:
        self._port = int(server.url.rpartition(":")[2])
        self._doors = asyncio.Semaphore(AT_ONCE)

    async def ask(self, number: int) -> Answer:
        """Send a prompt that shares all but its last token with the others'."""
        sampling = {"max_new_tokens": 1}
        body = json.dumps({"input_ids": [*PREFIX, 1000 + number], "sampling_params": sampling})
        head = (
            "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        async with self._doors:
            begin_s = time.monotonic()
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(f"{head}{body}".encode())
            await writer.drain()
        try:
            answer = await reader.read()
        except OSError:
            answer = b""
        finally:
            writer.transport.abort()
        if not answer:
            return Answer(0, None, time.monotonic() - begin_s)
        lines = answer.split(b"\r\n\r\n")[0].decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:])
        took_s = time.monotonic() - begin_s
        return Answer(int(lines[0].split()[1]), fields.get("retry-after"), took_s)

    async def ask_all(self, count: int) -> list[Answer]:
        """Send so many at once, and wait for all answers."""
        return await asyncio.gather(*(self.ask(number) for number in range(count)))


def _waiting(server: Served) -> int:
    return server.get("/server_info").json()["internal_states"][0].get("waiting", 0)


async def _wait_for_crowd(server: Served, count: int) -> int:
    """Wait until ``count`` requests wait, or a minute brought no more; return how many do."""
    most, moved_s = 0, time.monotonic()
    while (waiting := await asyncio.to_thread(_waiting, server)) < count:
        if waiting > most:
            most, moved_s = waiting, time.monotonic()
        elif time.monotonic() > moved_s + STUCK_S:
            break
        await asyncio.sleep(0.5)
    return waiting


def _paused(server: Served) -> None:
    """Fill the cache, and compute nothing from then on.

    What a step allocates is not what waiting costs; an idle engine gives its heap back.
    """
    for number in range(8):
        body = {"input_ids": [*PREFIX, 900 + number], "sampling_params": {"max_new_tokens": 1}}
        server.post("/generate", **body)
    server.post("/pause_generation", mode="in_place").raise_for_status()
    time.sleep(2)


def _all_wait(model: str) -> dict[str, Any]:
    """Have all wait; return what each takes, and what becomes of them."""
    more = ("--max-queued-requests", str(QUEUED), *CROWD)
    with served(model, *TIGHT, *more) as server:
        _paused(server)
        pids = [server.process.pid, server.engine_pid]
        before = [anon_mb(pid) for pid in pids]

        async def run() -> tuple[int, list[float], list[Answer]]:
            asked = asyncio.create_task(Crowd(server).ask_all(QUEUED))
            waiting = await _wait_for_crowd(server, QUEUED)
            await asyncio.sleep(2)
            grown = [anon_mb(pid) - mb for pid, mb in zip(pids, before, strict=True)]
            go_on = asyncio.to_thread(server.post, "/continue_generation")
            (await go_on).raise_for_status()
            return waiting, grown, await asked

        waiting, grown_mb, answers = asyncio.run(run())
        return {
            "waiting": waiting,
            "kb": [1000 * mb / max(1, waiting) for mb in grown_mb],
            "served": sum(answer.status == 200 for answer in answers),
            "unanswered": sum(answer.status == 0 for answer in answers),
            "lost_pages": server.lost_pages(),
        }


def _most_are_refused(model: str) -> dict[str, Any]:
    """Send more requests than may wait; return their answers, and how soon these came."""
    with served(model, *TIGHT, *CROWD, "--max-queued-requests", str(ROOM)) as server:
        _paused(server)

        async def run() -> tuple[list[Answer], list[Answer]]:
            crowd = Crowd(server)
            asked = asyncio.create_task(crowd.ask_all(QUEUED))
            await _wait_for_crowd(server, ROOM)
            await asyncio.sleep(5)  # the last of them have been refused
            probes = [await crowd.ask(number) for number in range(PROBES)]
            go_on = asyncio.to_thread(server.post, "/continue_generation")
            (await go_on).raise_for_status()
            return await asked, probes

        answers, probes = asyncio.run(run())
    refused = [answer for answer in answers if answer.status == 429]
    return {
        "served": sum(answer.status == 200 for answer in answers),
        "refused": len(refused),
        "with_retry_after": sum(answer.retry_after is not None for answer in refused),
        "p99_ms": 1000 * quantile([p.took_s for p in probes if p.status == 429], 0.99),
    }


def queue(model: str) -> Outcome:
    """R12: what waiting costs, and how fast the answer is where no more may wait."""
    all_wait, few = _all_wait(model), _most_are_refused(model)
    api_kb, engine_kb = all_wait["kb"]
    each_kb = api_kb + engine_kb
    return Outcome(
        f"{all_wait['waiting']:,} requests of 1,001 tokens wait at {each_kb:.1f} KB each,"
        f" {api_kb:.1f} of the API process and {engine_kb:.1f} of the engine;"
        f" {all_wait['served']:,} are served, {all_wait['lost_pages']} pages are lost. Where {ROOM}"
        f" may wait: of {QUEUED:,} at once {few['served']:,} served, {few['refused']:,} refused,"
        f" {few['with_retry_after']:,} with Retry-After; p99 of a refusal {few['p99_ms']:.0f} ms",
        each_kb <= KB_EACH
        and all_wait["served"] == all_wait["waiting"] == QUEUED
        and all_wait["lost_pages"] == 0
        and few["with_retry_after"] == few["refused"] > 0
        and few["served"] + few["refused"] == QUEUED
        and few["p99_ms"] <= REFUSED_MS,
        {"all_wait": all_wait, "few": few},
    )
