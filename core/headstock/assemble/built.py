"""The engine's half, put together: from settings and model files to a loop that serves."""

from __future__ import annotations

from headstock.assemble.compute import open_backend
from headstock.assemble.facts import describe
from headstock.assemble.progress import Report
from headstock.assemble.serving import build_serving_runner
from headstock.checkpoint import ModelFiles
from headstock.config import EngineSettings, Loaded
from headstock.engine import EngineLoop, build_engine
from headstock.wire.messages import Loading, Started
from headstock.wire.steps import Runner
from headstock.wire.transport import Mailbox


class ServingLoop:
    """An engine loop with its runner, ready to serve.

    Attributes:
        started: What to tell the API process.
    """

    def __init__(self, loop: EngineLoop, runner: Runner, started: Started) -> None:
        self._loop = loop
        self._runner = runner
        self.started = started

    def run(self) -> None:
        """Serve until :meth:`stop`."""
        self._loop.run()

    def stop(self) -> None:
        """Make :meth:`run` return soon. Any thread."""
        self._loop.stop()

    def close(self) -> None:
        """Free the device; after :meth:`run` has returned."""
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
    report(Loading(phase="backend"))
    opened = open_backend(loaded)
    built = build_serving_runner(opened, files, report)
    settings = opened.settings
    engine = build_engine(built.runner, settings.scheduler, settings.cache)
    facts = describe(opened, built)
    started = Started(limits=built.runner.limits, model_facts=facts)
    return ServingLoop(EngineLoop(engine, mailbox), built.runner, started)
