"""Trials of what those notice who share a server with others that mean harm: R4 and R6.

Both compare times of one run, alone and beside the others, so they need a machine that does nothing
else.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from reliability_parts.memory import anon_mb, family
from reliability_parts.outcome import Outcome, quantile
from tests.e2e.served import SMALL, Served, served, wait_for
from tests.structured.hostile import COMPILED, REFUSED_AT_ONCE

STREAMS, OUTPUTS = 8, 400
ALONE_S = 20.0
ATTACKERS = 2
"""Clients that send hostile grammars: as many as are compiled at once."""
ANSWER_S, SLOWER = 5.0, 1.25
"""R4: the longest answer to a grammar, and by how much gaps between tokens may grow."""
CONNECTIONS, SLOW_S = 500, 60.0
MEMORY_MB, P99_TIMES = 64.0, 2.0
"""R6: by how much memory, and others' p99, may grow."""
COMPILER = "structured.process"


async def _follow(client: httpx.AsyncClient, seed: int, gaps_s: list[float]) -> None:
    """Read one stream and note the times between its tokens."""
    sampling = {"max_new_tokens": OUTPUTS, "ignore_eos": True, "sampling_seed": seed}
    body = {"input_ids": [5 + seed, 9, 11], "stream": True, "sampling_params": sampling}
    last_s = None
    async with client.stream("POST", "/generate", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                now_s = time.monotonic()
                if last_s is not None:
                    gaps_s.append(now_s - last_s)
                last_s = now_s


async def _stream_until(
    client: httpx.AsyncClient, is_over: Callable[[], bool], gaps_s: list[float]
) -> None:
    """Keep ``STREAMS`` streams open until ``is_over``; note gaps of all."""

    async def keep(seed: int) -> None:
        while not is_over():
            await _follow(client, seed, gaps_s)

    await asyncio.gather(*(keep(seed) for seed in range(STREAMS)))


def _grammars() -> list[dict[str, Any]]:
    """Return the fields of the requests with hostile grammars."""
    rows = [(kind, text) for kind, text, _ in REFUSED_AT_ONCE.values()] + list(COMPILED.values())
    fields = {"choice": "guided_choice", "json_schema": "guided_json"}
    return [
        {fields.get(kind, kind): json.loads(text) if kind == "choice" else text}
        for kind, text in rows
    ]


async def _attack(
    client: httpx.AsyncClient, grammars: Iterator[dict[str, Any]], took_s: list[float]
) -> None:
    """Send what is left of ``grammars``, one after another."""
    for grammar in grammars:
        begin_s = time.monotonic()
        body = json.dumps({"prompt": "x", "max_tokens": 2, **grammar})
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/completions", content=body, headers=headers)
        if answer.status_code >= 500:
            raise RuntimeError(f"{body[:200]}: {answer.status_code} {answer.text[:200]}")
        took_s.append(time.monotonic() - begin_s)


async def _beside_grammars(server: Served) -> tuple[list[float], list[float], list[float]]:
    """Return gaps alone, gaps beside the attack, and times of its answers. Seconds."""
    alone_s: list[float] = []
    beside_s: list[float] = []
    took_s: list[float] = []
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        # The process that compiles is started with the first grammar: that is not measured.
        await _attack(client, iter([{"regex": "[ab]"}]), [])
        end_s = time.monotonic() + ALONE_S
        await _stream_until(client, lambda: time.monotonic() > end_s, alone_s)
        grammars = iter(_grammars())
        attacks = [asyncio.create_task(_attack(client, grammars, took_s)) for _ in range(ATTACKERS)]
        await _stream_until(client, lambda: all(each.done() for each in attacks), beside_s)
        await asyncio.gather(*attacks)
    return alone_s, beside_s, took_s


def hostile_grammars(model: str) -> Outcome:
    """R4: what streams notice of grammars that are made to hurt."""
    with served(model, *SMALL) as server:
        alone_s, beside_s, took_s = asyncio.run(_beside_grammars(server))
        pid = server.process.pid

        def num_compilers() -> int:
            return sum(name == COMPILER for name in family(pid).values())

        wait_for(lambda: num_compilers() <= 1, 10, "compilers that have ended")
    p99_s = [quantile(gaps, 0.99) for gaps in (alone_s, beside_s)]
    median_s = [quantile(gaps, 0.5) for gaps in (alone_s, beside_s)]
    ratio = p99_s[1] / p99_s[0]
    return Outcome(
        f"{len(took_s)} grammars beside {STREAMS} streams: the slowest answer took"
        f" {max(took_s):.1f} s, no process is left; p99 of the time between tokens"
        f" {1000 * p99_s[1]:.0f} ms, {ratio:.2f} times that without them (medians"
        f" {1000 * median_s[1]:.0f} and {1000 * median_s[0]:.0f} ms)",
        max(took_s) <= ANSWER_S and ratio <= SLOWER,
        {"p99_s": p99_s, "median_s": median_s, "gaps": [len(alone_s), len(beside_s)]},
    )


def _times(client: httpx.Client, is_over: Callable[[], bool]) -> list[float]:
    """Return how long short requests took, one after another. Seconds."""
    took_s: list[float] = []
    while not is_over():
        begin_s = time.monotonic()
        body = {"input_ids": [5, 9, 11], "sampling_params": {"max_new_tokens": 2}}
        client.post("/generate", json=body).raise_for_status()
        took_s.append(time.monotonic() - begin_s)
    return took_s


def slow_connections(model: str) -> Outcome:
    """R6: what others notice of hundreds of connections that send a byte now and then."""
    command = [sys.executable, "-m", "reliability_parts.slow_clients"]
    with (
        served(model, *SMALL) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        end_s = time.monotonic() + ALONE_S
        alone_s = _times(client, lambda: time.monotonic() > end_s)
        before_mb = anon_mb(server.process.pid)
        port = server.url.rpartition(":")[2]
        slow = subprocess.Popen(
            [*command, port, str(CONNECTIONS), str(SLOW_S)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        beside_s = _times(client, lambda: slow.poll() is not None)
        grown_mb = anon_mb(server.process.pid) - before_mb
        assert slow.stdout is not None
        num_cut_off = int(slow.stdout.read())
    p99_s = [quantile(times, 0.99) for times in (alone_s, beside_s)]
    ratio = p99_s[1] / p99_s[0]
    return Outcome(
        f"{CONNECTIONS} slow connections for {SLOW_S:.0f} s: {num_cut_off} cut off; others' p99"
        f" {1000 * p99_s[1]:.0f} ms, {ratio:.2f} times that without them; memory of the API process"
        f" grew by {grown_mb:.1f} MB",
        num_cut_off >= CONNECTIONS and ratio <= P99_TIMES and grown_mb <= MEMORY_MB,
        {"p99_s": p99_s, "requests": [len(alone_s), len(beside_s)]},
    )
