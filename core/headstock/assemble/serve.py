"""``headstock serve``: an API process over a supervised engine process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Protocol

from headstock.assemble.collector import spare_what_lasts
from headstock.assemble.front import load_prompter, model_card
from headstock.assemble.handover import engine_command
from headstock.checkpoint import resolve
from headstock.checkpoint.files import Progress
from headstock.config import Loaded, ServeSettings
from headstock.errors import ConfigError
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app
from headstock.server.http.serve import listen, run, serve, url_of
from headstock.server.model_card import ModelCard
from headstock.server.prompter import Prompter
from headstock.server.supervisor import Supervisor
from headstock.wire.messages import Loading, Started

RESTART_LOOK_S = 0.5
"""How often a restart of the engine is looked for. Seconds."""


class Display(Protocol):
    """What the operator sees of a start."""

    def pull(self) -> Progress | None:
        """Return what is told of a download, or None."""
        ...

    def progress(self, progress: Loading) -> None:
        """Show how far the engine is."""
        ...

    def ready(self, url: str, card: ModelCard, started: Started, settings: ServeSettings) -> None:
        """Show that requests are served."""
        ...

    def restarted(self, started: Started) -> None:
        """Show that an engine which died is back."""
        ...


def serve_model(loaded: Loaded[ServeSettings], display: Display) -> int:
    """Serve until told to stop; return the exit code.

    Raises:
        HeadstockError: Before the server is up: a setting or the model is at fault.
    """
    settings = loaded.settings
    listener = listen(settings.server)
    with contextlib.closing(listener):
        wanted = settings.model
        files = resolve(
            wanted.model,
            wanted.revision,
            needs_weights=wanted.load_format != "dummy",
            progress=display.pull(),
        )
        prompter = load_prompter(files, wanted)
        card = model_card(files, wanted, prompter)
        files.close()
        return run(_serve(loaded, card, prompter, listener, display))


async def _serve(
    loaded: Loaded[ServeSettings],
    card: ModelCard,
    prompter: Prompter,
    listener: socket.socket,
    display: Display,
) -> int:
    settings = loaded.settings
    supervisor = Supervisor(
        lambda address: engine_command(loaded, address),
        restart_limit=settings.server.restart_limit,
        on_progress=display.progress,
    )
    doors: list[Frontdoor] = []
    metrics = Metrics(
        card.name, lambda: doors[0].status.state if doors else None, settings.server.metrics_alias
    )
    door = Frontdoor(
        supervisor,
        card,
        prompter,
        max_live=settings.scheduler.max_queued_requests,
        observer=metrics,
    )
    doors.append(door)
    app = create_app(door, settings, metrics)
    spare_what_lasts()
    supervisor.start()
    running = asyncio.create_task(door.run())
    shown = asyncio.create_task(_show(door, display, url_of(listener), settings))
    try:
        await serve(app, listener, door, settings.server, stop=supervisor.ended)
    finally:
        shown.cancel()
        await supervisor.stop()
        running.cancel()
        door.close()
    gave_up = supervisor.gave_up
    if gave_up is not None:
        raise ConfigError(gave_up.problem, remedy=gave_up.remedy)
    return 0


async def _show(door: Frontdoor, display: Display, url: str, settings: ServeSettings) -> None:
    """Show the banner once requests are served, and each return of an engine that died."""
    shown = 0
    while True:
        await door.wait_ready()
        started = door.status.started
        if started is not None and door.status.num_starts > shown:
            if shown == 0:
                display.ready(url, door.card, started, settings)
            else:
                display.restarted(started)
            shown = door.status.num_starts
        await asyncio.sleep(RESTART_LOOK_S)
