"""The API process's half, put together: tokenizer, front door and application.

Importing this takes longer than most of what it does: the engine is started before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp

from headstock.assemble.front import load_prompter, model_card
from headstock.assemble.tokenizer_export import openable_path
from headstock.checkpoint import resolve
from headstock.config import Loaded, ServeSettings
from headstock.observe.metrics import Metrics
from headstock.plugins.models import ModelRegistry
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app
from headstock.server.keys import key_reader, read_keys
from headstock.wire.transport import EngineLink


@dataclass(frozen=True, slots=True)
class Api:
    """What answers requests.

    Attributes:
        app: The routes.
        door: What they talk to; not running yet.
        reload_keys: Reads the API keys again.
    """

    app: ASGIApp
    door: Frontdoor
    reload_keys: Callable[[], None]


def build_api(
    loaded: Loaded[ServeSettings], link: EngineLink, admin_port: int | None = None
) -> Api:
    """Build what answers the requests for an engine.

    Args:
        loaded: Settings, and who set them.
        link: The connection to the engine.
        admin_port: Where the routes of control are; None: with the others.

    Raises:
        HeadstockError: A setting or the model is at fault.
    """
    settings = loaded.settings
    keys = read_keys(settings.server)
    wanted = settings.model
    files = resolve(wanted.model, wanted.revision, needs_weights=wanted.load_format != "dummy")
    ModelRegistry().choose(files.config.get("architectures") or [])
    prompter = load_prompter(files, wanted)
    path = openable_path(files, wanted.model, prompter)
    card = model_card(files, wanted, prompter, path=path)
    files.close()
    doors: list[Frontdoor] = []
    metrics = Metrics(
        card.name, lambda: doors[0].status.state if doors else None, settings.server.metrics_alias
    )
    door = Frontdoor(
        link, card, prompter, max_live=settings.scheduler.max_queued_requests, observer=metrics
    )
    doors.append(door)
    app = create_app(door, settings, metrics, keys=keys, admin_port=admin_port)
    return Api(app, door, key_reader(settings.server, keys))
