"""What cpu_peers.py asks of a server: start it, stream the workloads from it, weigh it, stop it.

One client for all engines: raw asyncio connections, events parsed as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from peer_engines import PeerServer

from headstock.cli.bench_client import Streamed, Target
from headstock.cli.bench_figures import random_prompts

START_LIMIT_S = 300.0
HIGHEST_ID = 30_000
IDLE_S = 2.5
"""How long a server has had nothing to do when its memory is measured."""
Prompts = list[list[int]]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of the workloads. Tokens, but for ``streams`` and ``singles``."""

    streams: int = 16
    singles: int = 3
    one_input: int = 64
    one_output: int = 128
    many_input: int = 128
    many_output: int = 64
    prefix: int = 512
    own: int = 8
    prefix_output: int = 32
    fill_input: int = 992


TINY = Sizes(4, 1, 16, 12, 16, 8, 64, 8, 4, 64)


@dataclass(frozen=True, slots=True)
class Running:
    """A server that is ready.

    Attributes:
        start_s: From starting its process to the first answer that it is ready. Seconds.
    """

    process: psutil.Process
    target: Target
    model: str
    start_s: float


@contextlib.contextmanager
def started(server: PeerServer) -> Iterator[Running]:
    """Serve while the block runs."""
    port = free_port()
    environment = {**os.environ, **server.environment}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Installed packages have their bytecode.
    begin = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [*server.command, str(port)], stdout=log, stderr=log, env=environment
        ) as process,
    ):
        try:
            wait_ready(server, port, process, log)
            start_s = time.perf_counter() - begin
            url = f"http://127.0.0.1:{port}"
            model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
            yield Running(psutil.Process(process.pid), Target(url, {}), model, start_s)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_ready(server: PeerServer, port: int, process: subprocess.Popen[bytes], log: Any) -> None:
    end = time.perf_counter() + START_LIMIT_S
    while time.perf_counter() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", server.ready)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.02)
    log.seek(0)
    raise SystemExit(f"{server.name} did not start:\n{log.read()[-4000:]}")


def drawn(count: int, length: int, *, prefix: int = 0, seed: str) -> Prompts:
    """Return prompts of random ids, the same for every engine."""
    return random_prompts(count, length, prefix=prefix, vocab_size=HIGHEST_ID, seed=hash_of(seed))


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "little")


def stream(running: Running, prompts: Prompts, num_outputs: int) -> list[Streamed]:
    """Stream all prompts at once, greedy and past EOS."""
    body = {"model": running.model, "max_tokens": num_outputs, "temperature": 0.0}
    body["ignore_eos"] = True

    async def all_of_them() -> list[Streamed]:
        asked = (running.target.complete({**body, "prompt": prompt}) for prompt in prompts)
        return await asyncio.gather(*asked)

    answers = asyncio.run(all_of_them())
    errors = [answer.error for answer in answers if answer.error]
    if errors:
        raise SystemExit(f"{running.model}: {len(errors)} requests failed: {errors[0]}")
    counts = {answer.output_tokens for answer in answers}
    if counts != {num_outputs}:
        raise SystemExit(f"{running.model} generated {counts} tokens, not {num_outputs}.")
    return answers


def output_rate(answers: list[Streamed]) -> float:
    """Return output tokens a second over the whole wall time."""
    wall = max(a.ended_s for a in answers) - min(a.sent_s for a in answers)
    return sum(a.output_tokens for a in answers) / wall


def warm_up(running: Running, sizes: Sizes) -> None:
    stream(running, drawn(1, sizes.one_input, seed="warm1"), 8)
    stream(running, drawn(sizes.streams, 16, seed="warm16"), 4)


def one_stream(running: Running, sizes: Sizes, round_number: int) -> dict[str, float]:
    """Measure requests one after another: time to first token, and the rate of the others."""
    ttfts: list[float] = []
    rates: list[float] = []
    for number in range(sizes.singles):
        prompts = drawn(1, sizes.one_input, seed=f"a{round_number}-{number}")
        (answer,) = stream(running, prompts, sizes.one_output)
        ttfts.append(1e3 * answer.ttft_s)
        tpot = answer.tpot_s
        assert tpot is not None, "more than one token was asked for"
        rates.append(1 / tpot)
    return {"ttft_ms": statistics.median(ttfts), "decode_tok_s": statistics.median(rates)}


def many_streams(running: Running, sizes: Sizes, round_number: int) -> dict[str, float]:
    prompts = drawn(sizes.streams, sizes.many_input, seed=f"b{round_number}")
    return {"many_tok_s": output_rate(stream(running, prompts, sizes.many_output))}


def shared_prefix(running: Running, sizes: Sizes, round_number: int) -> dict[str, float]:
    prompts = drawn(sizes.streams, sizes.own, prefix=sizes.prefix, seed=f"c{round_number}")
    return {"prefix_tok_s": output_rate(stream(running, prompts, sizes.prefix_output))}


def memory(running: Running, server: PeerServer, sizes: Sizes) -> dict[str, float]:
    """Measure all processes' memory, once the whole cache was written and some seconds passed."""
    if server.fills_lazily:
        stream(running, drawn(sizes.streams, sizes.fill_input, seed="fill"), 2)
    time.sleep(IDLE_S)
    return {"pss_mib": proportional_bytes(running.process) / 2**20}


def proportional_bytes(process: psutil.Process) -> int:
    """Return the memory of a process and its children, shared pages counted once."""
    total = 0
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
