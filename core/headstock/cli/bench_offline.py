"""What the offline benchmarks share: flags, and runs of an engine in this process."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headstock.config import EngineSettings, add_flags
from headstock.errors import ConfigError

if TYPE_CHECKING:
    from headstock import Engine


def add_lengths(parser: argparse.ArgumentParser, *, prompts: str, count: int) -> None:
    """Add the flags of the workload, the engine's settings, and the output file.

    Args:
        parser: Of one benchmark.
        prompts: The flag for how many prompts there are.
        count: Its default.
    """
    parser.add_argument(prompts, type=int, default=count, metavar="N", dest="num_prompts")
    parser.add_argument("--input-len", type=int, default=128, metavar="N")
    parser.add_argument("--output-len", type=int, default=64, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--output-file", metavar="FILE", help="JSON with set-up and figures")
    add_flags(parser, EngineSettings)


def check_lengths(arguments: argparse.Namespace, *more: str) -> None:
    """Refuse numbers that leave nothing to measure.

    Args:
        arguments: As parsed.
        more: Names of others that must be at least 1.

    Raises:
        ConfigError: Naming the flag.
    """
    for name in ("num_prompts", "input_len", "output_len", *more):
        if getattr(arguments, name) < 1:
            raise ConfigError(
                f"{name.replace('_', '-')} is {getattr(arguments, name)}.",
                remedy="Give 1 or more.",
            )


def setup_of(engine: Engine, arguments: argparse.Namespace, *more: str) -> dict[str, Any]:
    """Return what was measured: model, lengths, and the engine's own description."""
    names = ("num_prompts", "input_len", "output_len", "seed", *more)
    lengths = {name: getattr(arguments, name) for name in names}
    return {"model": engine.card.name, **lengths, "engine": engine.started.model_facts}


def greedy(num_outputs: int) -> dict[str, Any]:
    """Return sampling parameters for exactly so many tokens."""
    return {"temperature": 0.0, "max_new_tokens": num_outputs, "ignore_eos": True}


async def stream_all(
    engine: Engine, prompts: Sequence[list[int]], num_outputs: int
) -> list[list[float]]:
    """Stream all prompts at once; return when each one's tokens came, from the start. Seconds."""
    begin_s = time.perf_counter()

    async def one(prompt: list[int]) -> list[float]:
        stream = await engine.async_generate(
            input_ids=prompt, sampling_params=greedy(num_outputs), stream=True
        )
        return [time.perf_counter() - begin_s async for _ in stream]

    return await asyncio.gather(*(one(prompt) for prompt in prompts))


async def finish_all(engine: Engine, prompts: Sequence[list[int]], num_outputs: int) -> float:
    """Generate from all prompts at once, unstreamed; return how long it took. Seconds."""
    begin_s = time.perf_counter()
    sampling = greedy(num_outputs)
    await asyncio.gather(
        *(engine.async_generate(input_ids=prompt, sampling_params=sampling) for prompt in prompts)
    )
    return time.perf_counter() - begin_s
