"""The engine's half, put together: from settings and model files to a loop that serves."""

from __future__ import annotations

from contextlib import ExitStack

from headstock.assemble.backend import open_backend
from headstock.assemble.progress import Report
from headstock.assemble.serving_loop import ServingLoop, serving_loop, why_pages_stay
from headstock.assemble.serving_runner import build_serving_runner
from headstock.assemble.weights import changeable_weights
from headstock.checkpoint import ModelFiles
from headstock.config import EngineSettings, Loaded
from headstock.wire.messages import Loading
from headstock.wire.transport import Mailbox


def build_engine_loop(
    loaded: Loaded[EngineSettings], files: ModelFiles, mailbox: Mailbox, report: Report
) -> ServingLoop:
    """Build everything that computes, and the loop that drives it.

    Args:
        loaded: Settings, and who set them.
        files: The model's.
        mailbox: The loop's connection.
        report: Called with the progress.

    Raises:
        HeadstockError: The model cannot be served here with these settings.
    """
    if loaded.settings.parallel.tp_size > 1:
        from headstock.assemble.ranked_loop import build_ranked_loop  # most engines have one rank

        return build_ranked_loop(loaded, files, mailbox, report)
    report(Loading(phase="backend"))
    opened = open_backend(loaded)
    with ExitStack() as on_failure:
        on_failure.callback(opened.device.close)
        built = build_serving_runner(opened, files, report)
        weights = changeable_weights(opened, built, files.config)
        pages = why_pages_stay(opened, built) or built.runner
        loop = serving_loop(opened, built, built.runner, built.shelf, mailbox, weights, pages)
        on_failure.pop_all()
    return loop
