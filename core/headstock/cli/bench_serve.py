"""Put load on a server that speaks the OpenAI API, ours or another's, and time what it streams.

Prompts are random token ids: --prefix-len that all share, then --input-len of their own. TTFT is
from sending a request on an open connection to its first token, TPOT the mean time of the tokens
after it, ITL the time between pieces of a stream, E2EL the whole request.

Examples:
  headstock bench serve                                      the server at the usual address
  headstock bench serve --num-prompts 500 --max-concurrency 64 --output-file run.json
  headstock bench serve --url http://10.0.0.5:8000 --request-rate 4 --input-len 512
  headstock bench serve --prefix-len 512 --input-len 16 --output-len 16
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headstock.cli.bench_client import Streamed, Target
from headstock.cli.bench_figures import random_prompts, spread_ms, tell
from headstock.cli.progress import Advance, row_progress
from headstock.cli.remote import RemoteServer, default_url, own_key
from headstock.config import ServeSettings, read_settings
from headstock.errors import ConfigError

SHOWN_ERRORS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent, and how fast.

    Attributes:
        prompts: Token ids of each.
        body: The rest of each request.
        request_rate: Requests a second, at random moments; None: at once.
        max_concurrency: Requests under way at most.
        seed: Of the moments.
    """

    prompts: list[list[int]]
    body: dict[str, Any]
    request_rate: float | None
    max_concurrency: int
    seed: int


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock bench serve``."""
    parser.add_argument("--config", metavar="FILE", help="TOML file: where the server listens")
    parser.add_argument("--url", metavar="URL", help="of the server")
    parser.add_argument("--model", metavar="NAME", help="the first that it serves by default")
    parser.add_argument("--num-prompts", type=int, default=100, metavar="N")
    parser.add_argument("--input-len", type=int, default=128, metavar="N")
    parser.add_argument("--output-len", type=int, default=64, metavar="N")
    parser.add_argument("--prefix-len", type=int, default=0, metavar="N")
    parser.add_argument(
        "--request-rate", type=float, metavar="X", help="requests a second; all at once by default"
    )
    parser.add_argument("--max-concurrency", type=int, default=256, metavar="N")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="requests before it")
    parser.add_argument(
        "--vocab-size", type=int, default=30_000, metavar="N", help="ids are drawn below it"
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="X")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--output-file", metavar="FILE", help="JSON with set-up and figures")


def run(arguments: argparse.Namespace) -> int:
    """Measure; return 1 when a request failed."""
    _check(arguments)
    server_settings = read_settings(arguments, ServeSettings).settings.server
    server = RemoteServer(arguments.url or default_url(server_settings), own_key(server_settings))
    with contextlib.closing(server):
        model = arguments.model or server.model()
    load = _load_of(arguments, model)
    target = Target(server.url, server.headers)
    asyncio.run(_warm_up(target, load, arguments.warmup))
    with row_progress("bench serve", len(load.prompts)) as advance:
        begin_s = time.perf_counter()
        answers = asyncio.run(run_load(target, load, advance))
    figures = figures_of(answers, time.perf_counter() - begin_s)
    setup = {"url": server.url, "model": model, **_setup(arguments)}
    tell(f"{model} at {server.url}", setup, figures, arguments.output_file)
    errors = [answer.error for answer in answers if answer.error]
    for error in list(dict.fromkeys(errors))[:SHOWN_ERRORS]:
        print(f"failed: {error}")
    return 1 if errors else 0


def _check(arguments: argparse.Namespace) -> None:
    for name in ("num_prompts", "output_len", "max_concurrency"):
        if getattr(arguments, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is {getattr(arguments, name)}.", remedy="Give 1 or more.")
    if arguments.request_rate is not None and arguments.request_rate <= 0:
        raise ConfigError(
            f"--request-rate is {arguments.request_rate:g}.",
            remedy="Give more than 0, or leave it out to send all at once.",
        )


def _setup(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("num_prompts", "input_len", "output_len", "prefix_len", "request_rate")
    names += ("max_concurrency", "temperature", "seed")
    return {name: getattr(arguments, name) for name in names}


def _load_of(arguments: argparse.Namespace, model: str) -> Load:
    prompts = random_prompts(
        arguments.num_prompts,
        arguments.input_len,
        prefix=arguments.prefix_len,
        vocab_size=arguments.vocab_size,
        seed=arguments.seed,
    )
    body = {
        "model": model,
        "max_tokens": arguments.output_len,
        "min_tokens": arguments.output_len,
        "ignore_eos": True,
        "temperature": arguments.temperature,
    }
    return Load(
        prompts=prompts,
        body=body,
        request_rate=arguments.request_rate,
        max_concurrency=arguments.max_concurrency,
        seed=arguments.seed,
    )


async def _warm_up(target: Target, load: Load, count: int) -> None:
    """Send some requests whose prompts are not among the measured ones, one after another.

    Raises:
        ConfigError: One fails: there is no point in more.
    """
    for number in range(count):
        prompt = [1 + number, *load.prompts[0][1:]]
        answer = await target.complete({**load.body, "prompt": prompt})
        if answer.error:
            raise ConfigError(
                f"The first request failed: {answer.error}",
                remedy="Check --url, --vocab-size and the lengths.",
            )


async def run_load(target: Target, load: Load, advance: Advance) -> list[Streamed]:
    """Send the whole load and return what came of each request, in the prompts' order."""
    draw = random.Random(load.seed)
    places = asyncio.Semaphore(load.max_concurrency)

    async def one(prompt: list[int]) -> Streamed:
        async with places:
            answer = await target.complete({**load.body, "prompt": prompt})
        advance(1)
        return answer

    tasks: list[asyncio.Task[Streamed]] = []
    next_s = time.perf_counter()
    for prompt in load.prompts:
        tasks.append(asyncio.create_task(one(prompt)))
        if load.request_rate is not None:
            next_s += draw.expovariate(load.request_rate)
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
    return await asyncio.gather(*tasks)


def figures_of(answers: Sequence[Streamed], wall_s: float) -> dict[str, Any]:
    """Return the benchmark's figures.

    Args:
        answers: Of all requests.
        wall_s: From the first request to the last end. Seconds.
    """
    served = [answer for answer in answers if not answer.error]
    inputs = sum(answer.prompt_tokens for answer in served)
    outputs = sum(answer.output_tokens for answer in served)
    tpots = [tpot for answer in served if (tpot := answer.tpot_s) is not None]
    gaps = [
        after - before
        for answer in served
        for before, after in zip(answer.arrivals_s, answer.arrivals_s[1:], strict=False)
    ]
    return {
        "duration_s": round(wall_s, 3),
        "completed": len(served),
        "failed": len(answers) - len(served),
        "input_tokens": inputs,
        "output_tokens": outputs,
        "requests_per_s": round(len(served) / wall_s, 3),
        "output_tokens_per_s": round(outputs / wall_s, 3),
        "total_tokens_per_s": round((inputs + outputs) / wall_s, 3),
        **spread_ms("ttft", [answer.ttft_s for answer in served]),
        **spread_ms("tpot", tpots),
        **spread_ms("itl", gaps),
        **spread_ms("e2el", [answer.ended_s - answer.sent_s for answer in served]),
    }
