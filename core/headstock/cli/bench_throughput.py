"""Hand many prompts to an engine in this process at once, and count tokens a second.

Prompts are random token ids: --prefix-len that all share, then --input-len of their own.

Examples:
  headstock bench throughput
  headstock bench throughput ./my-model --num-prompts 500 --input-len 1024 --output-len 128
  headstock bench throughput --prefix-len 512 --input-len 16 --no-prefix-cache
"""

from __future__ import annotations

import argparse
import asyncio

from headstock.cli.bench_figures import random_prompts, tell
from headstock.cli.bench_offline import add_lengths, check_lengths, finish_all, setup_of
from headstock.cli.offline import open_engine
from headstock.config import EngineSettings, read_settings

WARM_UP_OUTPUTS = 4


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock bench throughput``."""
    parser.add_argument("--prefix-len", type=int, default=0, metavar="N")
    add_lengths(parser, prompts="--num-prompts", count=64)


def run(arguments: argparse.Namespace) -> int:
    """Measure and tell."""
    check_lengths(arguments)
    with open_engine(read_settings(arguments, EngineSettings)) as engine:
        first, *prompts = random_prompts(
            arguments.num_prompts + 1,
            arguments.input_len,
            prefix=arguments.prefix_len,
            vocab_size=engine.card.vocab_size,
            seed=arguments.seed,
        )
        asyncio.run(finish_all(engine, [first], min(WARM_UP_OUTPUTS, arguments.output_len)))
        engine.flush_cache()
        wall_s = asyncio.run(finish_all(engine, prompts, arguments.output_len))
        setup = setup_of(engine, arguments, "prefix_len")
    count = len(prompts)
    inputs = count * (arguments.prefix_len + arguments.input_len)
    outputs = count * arguments.output_len
    figures = {
        "duration_s": round(wall_s, 3),
        "requests_per_s": round(count / wall_s, 3),
        "output_tokens_per_s": round(outputs / wall_s, 3),
        "total_tokens_per_s": round((inputs + outputs) / wall_s, 3),
    }
    tell(f"throughput of {setup['model']}", setup, figures, arguments.output_file)
    return 0
