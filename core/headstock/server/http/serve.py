"""Serving an application: signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from headstock.config.schema import ServerSettings
from headstock.observe.watchdog import Watchdog
from headstock.server.descriptors import room_for_connections
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.connections import CountedProtocol, sweep
from headstock.server.http.listen import url_of

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 30
TURN_S = 1.0
LAST_WRITES_S = 2
"""How long answers may still leave after the drain. Seconds."""


async def serve(
    app: ASGIApp,
    listeners: Sequence[socket.socket],
    frontdoor: Frontdoor,
    settings: ServerSettings,
    *,
    on_listening: Callable[[str], None] | None = None,
    on_hangup: Callable[[], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until a signal or ``stop``, then drain.

    The first SIGTERM or SIGINT ends readiness at once and lets open streams go on for
    ``drain_timeout_s``; a second one ends them now.

    Args:
        app: The application.
        listeners: Bound and listening; the first one's address is printed.
        frontdoor: Drained at the end.
        settings: For the deadline.
        on_listening: Called with the URL once connections are taken.
        on_hangup: Called at each SIGHUP.
        stop: Another way to end, such as an engine that cannot come back.
    """
    max_connections = min(settings.max_connections, room_for_connections())
    protocol = functools.partial(CountedProtocol, max_connections=max_connections)
    server = _Server(
        uvicorn.Config(
            app,
            interface="asgi3",
            http=cast("Any", protocol),
            ws="none",
            lifespan="auto",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=LAST_WRITES_S,
        )
    )
    stopping = asyncio.Event() if stop is None else stop
    now = asyncio.Event()
    with _signals(stopping, now, on_hangup), _watched():
        task = asyncio.create_task(server.serve(sockets=list(listeners)))
        stopped = asyncio.create_task(stopping.wait())
        sweeping = asyncio.create_task(sweep(server.server_state.connections))
        await server.listening(task)
        if on_listening is not None:
            on_listening(url_of(listeners[0]))
        await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            await _drain(frontdoor, settings.drain_timeout_s, now)
        server.should_exit = True
        await task
        sweeping.cancel()


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: the drain comes first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to :func:`serve`."""
        yield

    async def listening(self, task: asyncio.Task[None]) -> None:
        """Wait until connections are taken, or ``task`` has ended."""
        while not self.started and not task.done():
            await asyncio.sleep(0.01)


async def _drain(frontdoor: Frontdoor, timeout_s: float, now: asyncio.Event) -> None:
    """Wait for streams to end, until the deadline or a second signal."""
    draining = asyncio.create_task(frontdoor.drain(timeout_s))
    urged = asyncio.create_task(now.wait())
    await asyncio.wait([draining, urged], return_when=asyncio.FIRST_COMPLETED)
    urged.cancel()
    if not draining.done():
        draining.cancel()
        frontdoor.end_all("The server is shutting down.")
    with contextlib.suppress(asyncio.CancelledError):
        await draining


@contextlib.contextmanager
def _watched() -> Generator[None, None, None]:
    """Have it written down when the event loop does not turn."""
    loop = asyncio.get_running_loop()
    turns = 0
    timer: asyncio.TimerHandle | None = None

    def turn() -> None:
        nonlocal turns, timer
        turns += 1
        timer = loop.call_later(TURN_S, turn)

    turn()
    with Watchdog("The event loop", lambda: turns):
        yield
    if timer is not None:
        timer.cancel()


@contextlib.contextmanager
def _signals(
    stopping: asyncio.Event, now: asyncio.Event, on_hangup: Callable[[], None] | None
) -> Generator[None, None, None]:
    """Set ``stopping`` at the first signal, and ``now`` at the second."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            now.set()
        stopping.set()

    handlers = {signal.SIGTERM: stop, signal.SIGINT: stop}
    if on_hangup is not None:
        handlers[signal.SIGHUP] = on_hangup
    try:
        for kind, handler in handlers.items():
            loop.add_signal_handler(kind, handler)
    except (NotImplementedError, RuntimeError, ValueError):
        handlers = {}  # no main thread, or no such signals here: ``stop`` is the only way
    try:
        yield
    finally:
        for kind in handlers:
            loop.remove_signal_handler(kind)
