"""What the operator sees while a server starts, and once it serves."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TextIO, cast

from headstock.config import ServeSettings
from headstock.observe.steady import SteadyStream
from headstock.server.model_card import ModelCard
from headstock.wire.messages import Loading, Started

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PHASES = {
    "pull": "fetching the model",
    "model files": "reading the model's files",
    "backend": "opening the backend",
    "weights": "loading weights",
    "memory plan": "measuring memory",
    "graphs": "capturing steps",
    "ranks": "starting ranks",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EXAMPLES = {
    "generate": (
        "/v1/chat/completions",
        '{"messages": [{"role": "user", "content": "What is the capital of France?"}],'
        ' "max_tokens": 64, "temperature": 0}',
    ),
    "embed": ("/v1/embeddings", '{"input": ["A cat sits.", "A kitten rests."]}'),
    "classify": ("/classify", '{"text": "A cat sits."}'),
}
"""Route and body of a first request, by what the model is served for."""


class Banner:
    """Phases with their progress, then a banner, on standard error; plain lines to a file.

    What writes them is imported with the first line: the engine is on its way by then.
    """

    def __init__(self) -> None:
        self._phase = ""
        self._since = self._begin = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._is_up = False

    @cached_property
    def _console(self) -> Console:
        from rich.console import Console

        stream = cast("TextIO", SteadyStream(sys.stderr))
        return Console(file=stream, highlight=False, soft_wrap=True)

    def pull(self) -> Callable[[int, int], None]:
        """Return what shows the progress of a download."""

        def tell(done: int, total: int) -> None:
            self.progress(Loading(phase="pull", done=done, total=total, unit="bytes"))

        return tell

    def progress(self, progress: Loading) -> None:
        """Show how far a starting engine is."""
        if self._is_up:
            return
        if progress.phase != self._phase:
            self._end_phase()
            self._phase, self._since = progress.phase, time.monotonic()
        if not progress.total or not sys.stderr.isatty():
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("  {task.description}"), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(_words(self._phase), total=progress.total)
        if self._task is not None:
            self._bar.update(self._task, completed=progress.done, total=progress.total)

    def ready(self, url: str, card: ModelCard, started: Started, settings: ServeSettings) -> None:
        """Show what is served, where, and how to talk to it."""
        self._end_phase()
        self._is_up = True
        say = self._console.print
        seconds = time.monotonic() - self._begin
        say(f"\n[bold green]Headstock serves {card.name}[/] after {seconds:.1f} s")
        for name, text in [
            ("url", url),
            ("model", settings.model.model),
            *started.model_facts.items(),
        ]:
            say(f"  {name + ' ':.<44} {text}", markup=False)
        server = settings.server
        has_keys = bool(server.api_keys or server.api_key_file)
        say(f"  {'api keys ':.<44} {'needed' if has_keys else 'none needed'}")
        if server.host not in LOOPBACK and not has_keys:
            say(
                "\n[bold yellow]Other machines can reach this server, and no key is needed.[/]"
                "\n  -> Set --api-key-file, or --host 127.0.0.1."
            )
        key = " -H 'authorization: Bearer KEY'" if has_keys else ""
        path, body = EXAMPLES[card.task]
        say("\nTry it:")
        say(
            f"  curl {url}{path}{key} -H 'content-type: application/json' \\\n    -d '{body}'\n",
            markup=False,
        )

    def finish(self) -> None:
        """Show that the start is over, where no server follows."""
        self._end_phase()
        self._is_up = True

    def restarted(self, started: Started) -> None:
        """Show that an engine which died is back."""
        self._console.print("[bold green]The engine is back.[/]")

    def _end_phase(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        if self._phase:
            seconds = time.monotonic() - self._since
            self._console.print(f"  {_words(self._phase)}: {seconds:.1f} s")
        self._phase = ""


def _words(phase: str) -> str:
    return PHASES.get(phase, phase)
