"""Rank 0's half of an engine whose ranks share a model."""

from __future__ import annotations

from contextlib import ExitStack

from headstock.assemble.backend import check_ranks, open_backend
from headstock.assemble.progress import Report
from headstock.assemble.rank_main import join_group, rank_argument
from headstock.assemble.serving_loop import ServingLoop, serving_loop, why_pages_stay
from headstock.assemble.serving_runner import build_serving_runner
from headstock.assemble.weights import changeable_weights
from headstock.checkpoint import ModelFiles
from headstock.config import EngineSettings, Loaded
from headstock.parallel import RankedPages, RankedRunner, RankedShelf, spawn_ranks
from headstock.wire.messages import Loading
from headstock.wire.transport import Mailbox


def build_ranked_loop(
    loaded: Loaded[EngineSettings], files: ModelFiles, mailbox: Mailbox, report: Report
) -> ServingLoop:
    """Build rank 0, and start the others; a failure ends them, and leaves nothing open."""
    size = loaded.settings.parallel.tp_size
    report(Loading(phase="backend"))
    check_ranks(loaded.settings)
    ranks = spawn_ranks(size, lambda address: rank_argument(loaded, address))
    with ExitStack() as on_failure:
        on_failure.callback(ranks.close)
        try:
            opened = open_backend(loaded, rank=0, size=size)
            on_failure.callback(opened.device.close)
            report(Loading(phase="ranks"))
            ranks.wait_for_joining()
            group = join_group(opened, ranks.own)
            on_failure.callback(group.close)
            built = build_serving_runner(opened, files, report, group=group)
            runner = RankedRunner(built.runner, ranks)
            shelf = None if built.shelf is None else RankedShelf(built.shelf, ranks)
            weights = changeable_weights(opened, built, files.config)
            pages = why_pages_stay(opened, built) or RankedPages(built.runner, ranks)
            loop = serving_loop(opened, built, runner, shelf, mailbox, weights, pages)
        except Exception as error:
            cause = ranks.explain(error)
            ranks.end()
            raise cause from error
        on_failure.pop_all()
    return loop
