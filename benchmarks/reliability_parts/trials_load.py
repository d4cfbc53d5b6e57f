"""The trial of more load than a server can serve: it serves as much as ever, and refuses the rest.

It is run by ``benchmarks/reliability.py --only R13 --minutes 10``, on a machine that does nothing
else: what is compared are two throughputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field

from reliability_parts.outcome import Outcome, quantile
from reliability_parts.thin_client import ThinClient
from tests.e2e.served import SMALL, Served, served

RUNNING, WAITING = 16, 8
PROMPT, OUTPUTS = 64, 16
"""Tokens."""
LEAST_S, LEAST_SERVED = 20.0, 20
"""Of the load that the throughput is compared with."""
OVERLOAD = 3.0
PART_OF_BEST = 0.9
RECOVERY_S = 5.0
NEAR = 1.5
"""A request is served as if there had been no load, if it takes so many times as long at most."""


@dataclass
class Seen:
    """What came of the requests of one load.

    Attributes:
        statuses: How many had each; 0: no answer.
        ends_s: When requests were served. Seconds.
        silent: Refusals that did not say when to come back.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    ends_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    silent: int = 0


class Load:
    """Sends requests whose prompts have nothing in common.

    Args:
        client: To the server.
        seed: Of the prompts.
    """

    def __init__(self, client: ThinClient, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)

    async def ask(self, seen: Seen) -> None:
        """Send one request."""
        ids = [self._random.randrange(100, 40_000) for _ in range(PROMPT)]
        sampling = {"max_new_tokens": OUTPUTS, "ignore_eos": True}
        begin_s = time.monotonic()
        try:
            status, headers = await self._client.post(
                "/generate", {"input_ids": ids, "sampling_params": sampling}
            )
        except OSError:
            seen.statuses[0] += 1
            return
        seen.statuses[status] += 1
        if status == 200:
            seen.ends_s.append(time.monotonic())
            seen.took_s.append(seen.ends_s[-1] - begin_s)
        elif "retry-after" not in headers:
            seen.silent += 1

    async def closed(self, clients: int, seconds: float) -> Seen:
        """Have so many clients ask one request after the other."""
        seen, end_s = Seen(), time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < end_s:
                await self.ask(seen)

        await asyncio.gather(*(client() for _ in range(clients)))
        return seen

    async def opened(self, rate: float, seconds: float) -> Seen:
        """Send ``rate`` requests a second, whatever becomes of them; wait for none at the end."""
        seen, begin_s = Seen(), time.monotonic()
        tasks: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            at_s = number / rate
            if at_s > seconds:
                break
            await asyncio.sleep(max(0.0, begin_s + at_s - time.monotonic()))
            task = asyncio.create_task(self.ask(seen))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        return seen


def per_second(seen: Seen, begin_s: float, end_s: float) -> float:
    """Return how many requests a second were served between two times."""
    return sum(begin_s <= at_s < end_s for at_s in seen.ends_s) / (end_s - begin_s)


async def _run(server: Served, minutes: float) -> Outcome:
    async with contextlib.aclosing(ThinClient(server.url)) as client:
        load = Load(client, 13)
        alone = await load.closed(1, max(LEAST_S / 4, 6 * minutes))
        usual_s = quantile(alone.took_s, 0.5)
        begin_s = time.monotonic()
        best = await load.closed(RUNNING + WAITING // 2, max(LEAST_S, 12 * minutes))
        best_rate = per_second(best, begin_s, time.monotonic())
        if len(best.ends_s) < LEAST_SERVED:
            raise RuntimeError(f"{len(best.ends_s)} requests were served: too few to compare")

        begin_s = time.monotonic()
        over = await load.opened(OVERLOAD * best_rate, 60 * minutes)
        end_s = time.monotonic()
        rate = per_second(over, begin_s, end_s)
        after, recovered_s = Seen(), float("inf")
        while time.monotonic() < end_s + 60:
            await load.ask(after)
            if after.statuses[200] and after.took_s and after.took_s[-1] <= NEAR * usual_s:
                recovered_s = time.monotonic() - end_s
                break
    refused, odd = over.statuses[429], over.statuses.total() - over.statuses[200]
    odd -= refused
    return Outcome(
        f"{minutes:g} minutes of {OVERLOAD * best_rate:.1f} requests a second: {rate:.1f} a second"
        f" served, {100 * rate / best_rate:.0f} % of the {best_rate:.1f} of clients that wait;"
        f" {refused} refused, {over.silent} without Retry-After, {odd} answered otherwise;"
        f" {client.num_retried} sent again on a new connection, as the kept one was closed; a"
        f" request takes as long as before {recovered_s:.1f} s after the last",
        rate >= PART_OF_BEST * best_rate
        and recovered_s <= RECOVERY_S
        and odd == over.silent == 0 < refused,
        {"usual_s": usual_s, "num_retried": client.num_retried, "statuses": dict(over.statuses)},
    )


def overload(model: str, minutes: float = 10.0) -> Outcome:
    """R13: three times the load that it can serve."""
    bounds = ("--max-running-requests", str(RUNNING), "--max-queued-requests", str(WAITING))
    with served(model, *SMALL, *bounds) as server:
        return asyncio.run(_run(server, minutes))
