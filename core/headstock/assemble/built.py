"""The engine's half, put together: from settings and model files to a loop that serves."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from headstock.assemble.compute import Opened, check_ranks, open_backend
from headstock.assemble.facts import describe
from headstock.assemble.grammars import grammar_compiler
from headstock.assemble.profiler import TorchProfiler
from headstock.assemble.progress import Report
from headstock.assemble.rank_main import rank_argument
from headstock.assemble.ranks import join_group
from headstock.assemble.serving import Built, build_serving_runner
from headstock.assemble.weights import changeable_weights
from headstock.checkpoint import ModelFiles
from headstock.config import EngineSettings, Loaded
from headstock.engine import Engine, EngineLoop, Shelf, Weights, build_engine
from headstock.parallel import RankedRunner, RankedShelf, spawn_ranks
from headstock.runner.watched import WatchedRunner
from headstock.wire.messages import Loading, Started
from headstock.wire.steps import Runner
from headstock.wire.transport import Mailbox


class ServingLoop:
    """An engine loop with its runner, ready to serve.

    Attributes:
        started: What to tell the API process.
    """

    def __init__(self, loop: EngineLoop, engine: Engine, runner: Runner, started: Started) -> None:
        self._loop = loop
        self._engine = engine
        self._runner = runner
        self.started = started

    @property
    def turns(self) -> int:
        """How often the loop has gone round."""
        return self._loop.turns

    def when_idle(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once after the last work is done, a second later at most."""
        self._loop.when_idle(call)

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._loop.run()

    def stop(self) -> None:
        """Make :meth:`run` return soon. Any thread."""
        self._loop.stop()

    def close(self) -> None:
        """Free the device and end what compiles; after :meth:`run` has returned."""
        self._engine.close()
        self._runner.close()


def build_engine_loop(
    loaded: Loaded[EngineSettings], files: ModelFiles, mailbox: Mailbox, report: Report
) -> ServingLoop:
    """Build everything that computes, and the loop that drives it.

    Args:
        loaded: Settings, and who set them.
        files: The model's.
        mailbox: The loop's connection.
        report: Told of the progress.

    Raises:
        HeadstockError: The model cannot be served here with these settings.
    """
    if loaded.settings.parallel.tp_size > 1:
        return _build_ranked(loaded, files, mailbox, report)
    report(Loading(phase="backend"))
    opened = open_backend(loaded)
    with ExitStack() as on_failure:
        on_failure.callback(opened.device.close)
        built = build_serving_runner(opened, files, report)
        runner = WatchedRunner(built.runner, opened.device)
        weights = changeable_weights(opened, built, files.config)
        loop = _serving_loop(opened, built, runner, built.shelf, mailbox, weights)
        on_failure.pop_all()
    return loop


def _build_ranked(
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
            loop = _serving_loop(opened, built, runner, shelf, mailbox, weights)
        except Exception as error:
            cause = ranks.explain(error)
            ranks.end()
            raise cause from error
        on_failure.pop_all()
    return loop


def _serving_loop(
    opened: Opened,
    built: Built,
    runner: Runner,
    shelf: Shelf | None,
    mailbox: Mailbox,
    weights: Weights | str,
) -> ServingLoop:
    settings = opened.settings
    compiler, why_not = grammar_compiler(opened)
    engine = build_engine(
        runner,
        settings.scheduler,
        settings.cache,
        compiler=compiler,
        why_no_compiler=why_not,
        shelf=shelf,
        weights=weights,
        profiler=TorchProfiler(),
    )
    facts = describe(opened, built)
    if settings.parallel.tp_size > 1:
        facts["ranks"] = f"{settings.parallel.tp_size}, each with a slice of every layer"
    started = Started(limits=runner.limits, model_facts=facts)
    return ServingLoop(EngineLoop(engine, mailbox), engine, runner, started)
