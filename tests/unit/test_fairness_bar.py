"""300 greedy clients on a queue of 32, in simulated time: who obeys Retry-After is served.

The places and the scheduler are the real ones; clients, clock and runner are simulated, so nothing
here depends on the machine. ``benchmarks/fairness.py`` shows the same over HTTP.
"""

from __future__ import annotations

import heapq
import statistics
from dataclasses import dataclass, field

import pytest

from headstock.config.schema import reserved_places
from headstock.requests import SamplingParams, TokenIds
from headstock.scheduler import Scheduler
from headstock.server.errors import BusyError
from headstock.server.payers import Account, Payer
from headstock.server.places import Places
from headstock.wire.messages import Submit
from headstock.wire.steps import PageGroup, RunnerLimits, StepPlan, StepResult

SLOTS, QUEUE = 8, 32
STEP_S, OUTPUTS = 0.025, 4
WARM_UP_S, END_S = 10.0, 60.0


@dataclass
class Client:
    key: str
    every_s: float = 0.0
    user: str = ""
    begun_s: float | None = None
    served: int = 0
    refused: int = 0
    waits_s: list[float] = field(default_factory=list)


class World:
    """Clients that come at their times, and a server that makes a step each ``STEP_S``."""

    def __init__(self, queue: int = QUEUE) -> None:
        group = PageGroup("full", 16, 1, 4096)
        limits = RunnerLimits(SLOTS, 4096, 2048, 1000, 1, [group])
        self.scheduler = Scheduler(limits, policy="fair", prefix_cache=False)
        self.places = Places(queue, reserved_places(queue))
        self.coming: list[tuple[float, int, Client]] = []
        self.live: dict[str, tuple[Client, Account]] = {}
        self.count = 0

    def expect(self, client: Client, at_s: float) -> None:
        self.count += 1
        heapq.heappush(self.coming, (at_s, self.count, client))

    def run(self) -> None:
        now_s = 0.0
        while now_s < END_S:
            while self.coming and self.coming[0][0] <= now_s:
                at_s, _, client = heapq.heappop(self.coming)
                self.arrive(client, at_s)
            now_s += STEP_S
            plan = self.scheduler.plan(now_s)
            if plan is not None:
                self.settle(plan, now_s)

    def arrive(self, client: Client, now_s: float) -> None:
        if client.begun_s is None:
            client.begun_s = now_s
        account = self.places.account(Payer(client.key))
        try:
            self.places.check(account, 1, num_slots=SLOTS, now_s=now_s)
        except BusyError as error:
            client.refused += 1
            self.expect(client, now_s + error.retry_after_s)
            return
        self.places.begin(account, 16, now_s)
        self.count += 1
        name = str(self.count)
        params = SamplingParams(max_new_tokens=OUTPUTS, temperature=0, sampling_seed=0)
        self.live[name] = (client, account)
        self.scheduler.submit(
            Submit(
                id=name,
                prompt_ids=TokenIds([5] * 16),
                params=params,
                payer=client.key,
                user=client.user,
            ),
            now_s,
        )

    def settle(self, plan: StepPlan, now_s: float) -> None:
        slots = [s for s, each in zip(plan.rows.slots, plan.rows.yields, strict=True) if each]
        count = len(slots)
        result = StepResult(plan.step, slots, [1] * count, [7] * count, [0] * count)
        drawn = self.scheduler.settle(result, now_s)
        for request, offset in zip(drawn.requests, drawn.offsets, strict=True):
            if offset == 0:
                client, _ = self.live[request.id]
                assert client.begun_s is not None
                client.waits_s.append(now_s - client.begun_s)
        for ended in self.scheduler.take_ended():
            assert ended.reason.kind == "length", ended.reason
            client, account = self.live.pop(ended.id)
            self.places.end(account, OUTPUTS, now_s)
            assert client.begun_s is not None
            next_s = max(now_s + 0.001, client.begun_s + client.every_s)
            client.served, client.begun_s = client.served + 1, None
            self.expect(client, next_s)


@pytest.mark.parametrize("has_one_key", [False, True])
def test_among_300_greedy_clients_a_polite_one_is_served_every_time(has_one_key: bool) -> None:
    world = World()
    greedy = [Client("hog" if has_one_key else f"greedy {number}") for number in range(300)]
    polite = [Client(f"polite {number}", every_s=10.0) for number in range(5)]
    for number, client in enumerate(greedy):
        world.expect(client, 0.001 * number)
    for number, client in enumerate(polite):
        world.expect(client, WARM_UP_S + 2.003 * number)
    world.run()
    waits_s = sorted(wait for client in polite for wait in client.waits_s)
    assert len(waits_s) >= 24
    assert sum(client.refused for client in polite) == 0, "each is served when it comes"
    assert waits_s[-1] < 3 * statistics.median(waits_s)
    served = [client.served for client in greedy]
    assert sum(served) > 0.9 * (END_S / STEP_S / OUTPUTS) * SLOTS, "no place is kept idle"
    if not has_one_key:
        assert min(served) > 0.5 * statistics.mean(served), "who obeys Retry-After has its turns"


def test_among_300_greedy_users_of_its_own_key_a_polite_one_is_served_every_time() -> None:
    world = World(queue=512)
    greedy = [Client("key", user="greedy") for _ in range(300)]
    polite = [Client("key", every_s=10.0, user=f"polite {number}") for number in range(5)]
    for number, client in enumerate(greedy):
        world.expect(client, 0.001 * number)
    for number, client in enumerate(polite):
        world.expect(client, WARM_UP_S + 2.003 * number)
    world.run()
    waits_s = sorted(wait for client in polite for wait in client.waits_s)
    assert len(waits_s) >= 24
    assert sum(client.refused for client in polite) == 0
    assert waits_s[-1] < 3 * statistics.median(waits_s)
    assert waits_s[-1] < 10 * STEP_S
    served = sum(client.served for client in greedy)
    assert served > 0.9 * (END_S / STEP_S / OUTPUTS) * SLOTS
