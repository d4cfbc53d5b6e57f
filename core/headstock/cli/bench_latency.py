"""Time batches of one size on an engine in this process, one batch after another.

Prompts are random token ids, drawn anew for each batch, so that nothing comes from the cache. TTFT
is from handing the batch over to a prompt's first token, TPOT the mean time of the tokens after it.

Examples:
  headstock bench latency
  headstock bench latency ./my-model --batch-size 8 --input-len 1024 --output-len 128
  headstock bench latency --load-format dummy --output-file latency.json
"""

from __future__ import annotations

import argparse
import asyncio

from headstock.cli.bench_figures import random_prompts, spread_ms, tell
from headstock.cli.bench_offline import add_lengths, check_lengths, setup_of, stream_all
from headstock.cli.offline import open_engine
from headstock.cli.progress import row_progress
from headstock.config import EngineSettings, read_settings


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``headstock bench latency``."""
    parser.add_argument("--iterations", type=int, default=5, metavar="N", help="batches")
    parser.add_argument("--warmup", type=int, default=1, metavar="N", help="batches before them")
    add_lengths(parser, prompts="--batch-size", count=1)


def run(arguments: argparse.Namespace) -> int:
    """Measure and tell."""
    check_lengths(arguments, "iterations")
    warmup, count, outputs = arguments.warmup, arguments.num_prompts, arguments.output_len
    with open_engine(read_settings(arguments, EngineSettings)) as engine:
        prompts = random_prompts(
            count * (warmup + arguments.iterations),
            arguments.input_len,
            prefix=0,
            vocab_size=engine.card.vocab_size,
            seed=arguments.seed,
        )
        batches = [prompts[at : at + count] for at in range(0, len(prompts), count)]
        for batch in batches[:warmup]:
            asyncio.run(stream_all(engine, batch, outputs))
        runs: list[list[list[float]]] = []
        with row_progress("bench latency", arguments.iterations) as advance:
            for batch in batches[warmup:]:
                runs.append(asyncio.run(stream_all(engine, batch, outputs)))
                advance(1)
        setup = setup_of(engine, arguments, "iterations")
    streams = [stream for run in runs for stream in run]
    figures = {
        **spread_ms("batch", [max(stream[-1] for stream in run) for run in runs]),
        **spread_ms("ttft", [stream[0] for stream in streams]),
    }
    if outputs > 1:
        tpots = [(stream[-1] - stream[0]) / (outputs - 1) for stream in streams]
        figures |= spread_ms("tpot", tpots)
    tell(f"latency of {setup['model']}", setup, figures, arguments.output_file)
    return 0
