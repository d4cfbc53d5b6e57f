"""The API process's half, put together: tokenizer, front door and application.

Importing this takes longer than most of what it does: the engine is started before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from starlette.types import ASGIApp

from headstock.assemble.api_plugins import load_api_plugins
from headstock.assemble.model_files import find_model
from headstock.assemble.served_model import load_prompter, model_card
from headstock.assemble.task import find_task
from headstock.assemble.tokenizer import openable_path
from headstock.config import Loaded, ServeSettings
from headstock.config.adapters import given_adapters
from headstock.config.schema import ServerSettings
from headstock.observe.metrics import Metrics
from headstock.observe.traces import RequestTracer, open_tracer
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app, servable
from headstock.server.keys import key_reader, read_keys
from headstock.server.records import CallRecord, RecordBook
from headstock.server.sleep import EngineProcess
from headstock.server.store import MemoryStore, StateFolder, Store
from headstock.server.store.folder import bounds_of
from headstock.wire.transport import EngineLink

log = logging.getLogger(__name__)
SERVICE = "headstock"
"""What collectors call the server."""


@dataclass(frozen=True, slots=True)
class Api:
    """What answers requests.

    Attributes:
        app: The routes.
        door: What they talk to; not running yet.
        reload_keys: Reads the API keys again.
        state: What outlives this process, if anything does; closed by who built this.
        tracer: Where traces go; None: nowhere.
    """

    app: ASGIApp
    door: Frontdoor
    reload_keys: Callable[[], None]
    state: StateFolder | None = None
    tracer: RequestTracer | None = None


def state_folder(settings: ServerSettings) -> StateFolder | None:
    """Open the folder of --state-dir; None: there is none.

    Raises:
        ConfigError: It cannot be used, or another server uses it.
    """
    if settings.state_dir is None:
        return None
    return StateFolder(Path(settings.state_dir).expanduser(), bounds_of(settings))


class StoreOptions(TypedDict):
    """The front door's options for its store."""

    store: Store
    is_durable: bool
    resume_s: float


def store_options(settings: ServerSettings, state: StateFolder | None) -> StoreOptions:
    """Return where the front door keeps what callers store, and for how long."""
    return StoreOptions(
        store=MemoryStore(bounds_of(settings)) if state is None else state.store,
        is_durable=state is not None,
        resume_s=settings.stream_resume_s,
    )


def build_api(
    loaded: Loaded[ServeSettings],
    link: EngineLink,
    admin_port: int | None = None,
    *,
    process: EngineProcess | None = None,
) -> Api:
    """Build what answers the requests for an engine.

    Args:
        loaded: Settings, and who set them.
        link: The connection to the engine.
        admin_port: Where the routes of control are; None: with the others.
        process: The engine's, where it can be ended and started again.

    Raises:
        HeadstockError: A setting or the model is at fault.
    """
    settings = loaded.settings
    state = state_folder(settings.server)
    keys = read_keys(settings.server, None if state is None else state.secret)
    wanted = settings.model
    files = find_model(settings)
    # First of all: what the rest of the configuration means is the class's business.
    plugins = load_api_plugins(settings.device.disable_plugin)
    find_task(files, wanted, plugins.models)
    prompter = load_prompter(files, wanted, settings.media, plugins.formats)
    path = openable_path(files, wanted.model, prompter)
    card = model_card(files, wanted, prompter, path=path, registry=plugins.models)
    files.close()
    tracer = _open_tracer(settings.server)
    doors: list[Frontdoor] = []
    metrics = Metrics(
        card.name, lambda: doors[0].status.state if doors else None, settings.server.metrics_alias
    )
    door = Frontdoor(
        link,
        card,
        prompter,
        max_live=settings.scheduler.max_queued_requests,
        adapters=given_adapters(settings.lora),
        observer=metrics,
        records=RecordBook(settings.server.request_records, _tracing(tracer)),
        process=process,
        **store_options(settings.server, state),
    )
    doors.append(door)
    app = create_app(
        door,
        settings,
        metrics,
        keys=keys,
        admin_port=admin_port,
        state=state,
        routers=plugins.load_routers(),
    )
    return Api(servable(app), door, key_reader(settings.server, keys), state, tracer)


def _open_tracer(settings: ServerSettings) -> RequestTracer | None:
    """Return what traces go to, where a collector is set."""
    if settings.otlp_endpoint is None:
        return None
    return open_tracer(settings.otlp_endpoint, settings.trace_ratio, SERVICE)


def _tracing(tracer: RequestTracer | None) -> Callable[[CallRecord], None] | None:
    """Return what traces a call that is over."""
    if tracer is None:
        return None

    def trace(record: CallRecord) -> None:
        try:
            tracer.trace(record.tell_all(), record.call.traceparent)
        except Exception:
            # What watches requests must not end them.
            log.exception("%s could not be traced", record.call.name)

    return trace
