"""``headstock serve``: an API process over a supervised engine process.

The engine is started first; what the API process needs is imported and loaded while the engine
imports and loads what it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Protocol

from headstock.assemble.memory_hygiene import (
    give_back_memory,
    importing,
    keep_heap_small,
    spare_what_lasts,
)
from headstock.assemble.settings_text import engine_command
from headstock.assemble.vetting import leave_out_unfit
from headstock.checkpoint import fetch
from headstock.config import Loaded, ServeSettings
from headstock.errors import ConfigError, RequestError
from headstock.server.descriptors import prepare
from headstock.server.http.event_loop import run
from headstock.server.http.listen import listen_all, url_of
from headstock.server.model_card import ModelCard
from headstock.server.supervisor import Supervisor
from headstock.wire.folders import sweep_folders
from headstock.wire.messages import Loading, Started

if TYPE_CHECKING:
    from headstock.assemble.api_process import Api
    from headstock.checkpoint.files import Progress
    from headstock.server.frontdoor import Frontdoor

log = logging.getLogger(__name__)
RESTART_LOOK_S = 0.5
"""How often a restart of the engine is looked for. Seconds."""


class Display(Protocol):
    """What the operator sees of a start."""

    def pull(self) -> Progress | None:
        """Return what shows the progress of a download, or None."""
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
    """Serve until stopped; return the exit code.

    Raises:
        HeadstockError: Before the server is up: a setting or the model is at fault.
    """
    keep_heap_small()
    sweep_folders()
    prepare(loaded.settings.server.max_connections)
    with contextlib.ExitStack() as stack:
        listeners = [
            stack.enter_context(contextlib.closing(listener))
            for listener in listen_all(loaded.settings.server)
        ]
        wanted = loaded.settings.model
        fetch(wanted.model, wanted.revision, display.pull())
        loaded = leave_out_unfit(loaded)
        return run(_serve(loaded, listeners, display))


async def _serve(
    loaded: Loaded[ServeSettings], listeners: list[socket.socket], display: Display
) -> int:
    settings = loaded.settings
    supervisor = Supervisor(
        lambda address: engine_command(loaded, address),
        restart_limit=settings.server.restart_limit,
        on_progress=display.progress,
    )
    supervisor.start()
    try:
        admin_port = listeners[1].getsockname()[1] if len(listeners) > 1 else None
        api = await asyncio.to_thread(_build_api, loaded, supervisor, admin_port)
        await _answer(api, listeners, display, settings, supervisor)
    finally:
        await supervisor.stop()
    gave_up = supervisor.gave_up
    if gave_up is not None:
        raise ConfigError(gave_up.problem, remedy=gave_up.remedy)
    return 0


def _build_api(
    loaded: Loaded[ServeSettings], supervisor: Supervisor, admin_port: int | None
) -> Api:
    """Import and build, in a thread: the event loop is busy starting the engine."""
    with importing():
        from headstock.assemble.api_process import build_api
    api = build_api(loaded, supervisor, admin_port, process=supervisor)
    spare_what_lasts()
    return api


async def _answer(
    api: Api,
    listeners: list[socket.socket],
    display: Display,
    settings: ServeSettings,
    supervisor: Supervisor,
) -> None:
    """Answer requests until stopped, or until there is no engine any more."""
    from headstock.server.http.serve import serve

    door = api.door
    running = asyncio.create_task(door.run())
    synced = None if api.state is None else asyncio.create_task(api.state.keep_synced())
    shown = asyncio.create_task(_show(door, display, url_of(listeners[0]), settings, supervisor))
    try:
        await serve(
            api.app,
            listeners,
            door,
            settings.server,
            on_hangup=api.reload_keys,
            stop=supervisor.ended,
        )
    finally:
        shown.cancel()
        await supervisor.stop()
        running.cancel()
        door.close()
        if api.state is not None and synced is not None:
            synced.cancel()
            api.state.close()
        if api.tracer is not None:
            api.tracer.close()


async def _show(
    door: Frontdoor, display: Display, url: str, settings: ServeSettings, supervisor: Supervisor
) -> None:
    """Show the banner once requests are served, and each return of an engine that died.

    An adapter of the operator's that cannot be read ends the server.
    """
    shown = 0
    while True:
        await door.wait_ready()
        started = door.status.started
        if started is not None and door.status.num_starts > shown:
            if shown == 0:
                try:
                    await door.adapters.load_given()
                except RequestError as error:
                    await supervisor.give_up(error.problem, error.remedy)
                    return
                if num_revived := await door.resumption.revive():
                    log.info("Going on with %d calls of the process before", num_revived)
                display.ready(url, door.card, started, settings)
                give_back_memory()
            else:
                display.restarted(started)
            shown = door.status.num_starts
        await asyncio.sleep(RESTART_LOOK_S)
