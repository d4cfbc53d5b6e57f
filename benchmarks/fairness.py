"""Whether everybody is served where many want more than there is.

    python benchmarks/fairness.py [--clients 300] [--seconds 50] [--queue 32] [--one-key]

A server on loopback over the real engine, whose runner computes nothing: 8 requests run at once and
one takes 0.1 s. So many greedy clients, each with a key of its own (or all with one), send their
next request as soon as the last is answered, and after a refusal when Retry-After says. Five polite
clients, each with its own key, come after 10 s and send one request in 10 s. Reported are who was
never served, whether each polite request was served at once, and times to the first token. Seconds
are the wall's. It takes a minute, and its times mean something on a machine that does nothing else.
The bar: every polite request is served at once, p99 under 3 x the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from headstock.config.schema import (
    CacheSettings,
    ModelSettings,
    SchedulerSettings,
    ServerSettings,
    ServeSettings,
)
from headstock.engine import build_engine
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app
from headstock.server.http.listen import listen_all
from headstock.server.http.serve import serve
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.wire.messages import FromEngine, Started, ToEngine
from headstock.wire.steps import PageGroup, RunnerLimits, StepPlan, StepResult

SLOTS = 8
OUTPUTS = 4
STEP_S = 0.025
POLITE = 5
POLITE_EVERY_S = 10.0
WARM_UP_S = 10.0
"""Until each greedy client has been served: before, the polite are like all the others."""


class NullRunner:
    """Draws token 7 for every row; steps take no time."""

    def __init__(self) -> None:
        group = PageGroup("full", 16, 1, 4096)
        self.limits = RunnerLimits(SLOTS, 4096, 2048, 1000, 1, [group])

    def launch(self, plan: StepPlan) -> StepPlan:
        return plan

    def result(self, handle: StepPlan) -> StepResult:
        rows = handle.rows
        slots = [slot for slot, each in zip(rows.slots, rows.yields, strict=True) if each]
        count = len(slots)
        return StepResult(handle.step, slots, [1] * count, [7] * count, [0] * count)

    def close(self) -> None:
        return


class LoopLink:
    """An ``EngineLink`` whose engine runs in the event loop, one step each ``STEP_S``."""

    unheard_s = 0.0

    def __init__(self, num_queued: int) -> None:
        runner = NullRunner()
        settings = SchedulerSettings(max_queued_requests=num_queued)
        self._engine = build_engine(runner, settings, CacheSettings(prefix_cache=False))
        self._out: asyncio.Queue[list[FromEngine]] = asyncio.Queue()
        self._out.put_nowait([Started(limits=runner.limits), self._engine.state()])
        self._in: deque[ToEngine] = deque()
        self._task = asyncio.create_task(self._run())

    def send(self, message: ToEngine) -> None:
        self._in.append(message)

    async def receive(self) -> list[FromEngine]:
        return await self._out.get()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._out.put_nowait([])

    async def _run(self) -> None:
        next_state_s = next_s = time.monotonic()
        while True:
            messages = list(self._in)
            self._in.clear()
            replies = self._engine.receive(messages) if messages else []
            if self._engine.has_work:
                replies += self._engine.step()
            if time.monotonic() > next_state_s:
                next_state_s += 1.0
                replies.append(self._engine.state())
            if replies:
                self._out.put_nowait(replies)
            next_s = max(time.monotonic(), next_s + STEP_S)
            await asyncio.sleep(next_s - time.monotonic())


@dataclass
class Client:
    """One client, and what became of its requests."""

    key: str
    every_s: float = 0.0
    sent: int = 0
    served: int = 0
    refused: int = 0
    ttft_s: list[float] = field(default_factory=list)

    async def run(self, port: int, until_s: float, start_s: float) -> None:
        await asyncio.sleep(start_s)
        while time.monotonic() < until_s:
            begin = time.monotonic()
            self.sent += 1
            first_s, retry_s = await self._ask(port)
            while first_s is None and time.monotonic() < until_s:
                self.refused += 1
                await asyncio.sleep(retry_s)
                first_s, retry_s = await self._ask(port)
            if first_s is not None:
                self.served += 1
                self.ttft_s.append(first_s - begin)
            await asyncio.sleep(max(0.0, begin + self.every_s - time.monotonic()))

    async def _ask(self, port: int) -> tuple[float | None, float]:
        """Send a request; returns when its first token came, or None and when to try again."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sampling = {"max_new_tokens": OUTPUTS, "temperature": 0, "ignore_eos": True}
        body = json.dumps({"input_ids": [5] * 16, "stream": True, "sampling_params": sampling})
        writer.write(
            f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n\r\n{body}".encode()
        )
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        if " 200 " in head.splitlines()[0]:
            await reader.readuntil(b"data: ")
            first_s = time.monotonic()
            await reader.read()
            writer.close()
            return first_s, 0.0
        await reader.read()
        writer.close()
        assert " 429 " in head.splitlines()[0], head
        retry = next(line for line in head.splitlines() if line.startswith("retry-after:"))
        return None, float(retry.split(":")[1])


class Server:
    """The server, in a thread of its own."""

    def __init__(self, keys: list[str], num_queued: int) -> None:
        self.ready = threading.Event()
        self._settings = ServeSettings(
            model=ModelSettings(served_model_name="null"),
            server=ServerSettings(port=0, api_keys=keys, drain_timeout_s=1.0),
        )
        self._num_queued = num_queued
        self.thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self.thread.join(20)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        link = LoopLink(self._num_queued)
        card = ModelCard(
            name="null", model_path="/nowhere", max_length=2048, vocab_size=1000, eos_ids=[2]
        )
        door = Frontdoor(link, card, Prompter(None, None), max_live=self._num_queued)
        metrics = Metrics("null", lambda: door.status.state)
        pump = asyncio.create_task(door.run())
        await door.wait_ready()
        listeners = listen_all(self._settings.server)
        self.port = listeners[0].getsockname()[1]
        app = create_app(door, self._settings, metrics)
        await serve(
            app,
            listeners,
            door,
            self._settings.server,
            on_listening=lambda _: self.ready.set(),
            stop=self._stop,
        )
        await link.close()
        await pump
        door.close()


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else float("nan")


def report(greedy: list[Client], polite: list[Client], seconds: float) -> dict[str, object]:
    counts = [client.served for client in greedy]
    total, squares = sum(counts), sum(count * count for count in counts)
    waits = [wait for client in greedy for wait in client.ttft_s]
    own = [wait for client in polite for wait in client.ttft_s]
    return {
        "greedy_never_served": counts.count(0),
        "greedy_served_min_max": [min(counts), max(counts)],
        "jain_index": round(total * total / (len(counts) * squares), 3) if squares else 0.0,
        "served_per_s": round((total + len(own)) / seconds, 1),
        "greedy_ttft_p50_p99_s": [round(quantile(waits, p), 2) for p in (0.5, 0.99)],
        "polite_sent_served": [sum(c.sent for c in polite), sum(c.served for c in polite)],
        "polite_refusals": sum(client.refused for client in polite),
        "polite_ttft_p50_p99_s": [round(quantile(own, p), 3) for p in (0.5, 0.99)],
        "polite_ttft_s": [round(wait, 2) for wait in own],
    }


def failures(found: dict[str, object], polite: list[Client]) -> list[str]:
    """Return where the bar is not reached.

    Each polite request is served, without a refusal, and its p99 is under 3 x the median; no greedy
    client is kept out.
    """
    sent, served = sum(c.sent for c in polite), sum(c.served for c in polite)
    waits = [wait for client in polite for wait in client.ttft_s]
    checks = {
        f"{sent - served} polite requests were not served": sent != served or not sent,
        "a polite request was refused": any(client.refused for client in polite),
        "the p99 of polite requests is over 3 x their median": quantile(waits, 0.99)
        > 3 * quantile(waits, 0.5),
        f"{found['greedy_never_served']} greedy clients were never served": bool(
            found["greedy_never_served"]
        ),
    }
    return [problem for problem, is_so in checks.items() if is_so]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=50.0)
    parser.add_argument("--queue", type=int, default=32)
    parser.add_argument("--one-key", action="store_true", help="all greedy clients have one key")
    options = parser.parse_args()
    names = ["greedy-key-000"] * options.clients
    if not options.one_key:
        names = [f"greedy-key-{number:03}" for number in range(options.clients)]
    greedy = [Client(name) for name in names]
    polite = [Client(f"polite-key-{number}", POLITE_EVERY_S) for number in range(POLITE)]
    keys = list(dict.fromkeys(client.key for client in [*greedy, *polite]))
    server = Server(keys, options.queue)
    server.thread.start()
    server.ready.wait(20)

    async def everything() -> None:
        until_s = time.monotonic() + options.seconds
        await asyncio.gather(
            *(client.run(server.port, until_s, 0.0) for client in greedy),
            *(
                client.run(server.port, until_s - 1.0, WARM_UP_S + POLITE_EVERY_S * place / POLITE)
                for place, client in enumerate(polite)
            ),
        )

    asyncio.run(everything())
    server.stop()
    found = report(greedy, polite, options.seconds)
    print(json.dumps(found, indent=1))
    missed = failures(found, polite)
    print("The bar is reached." if not missed else f"The bar is MISSED: {'; '.join(missed)}.")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
