"""The API process's half, put together: tokenizer, front door and application.

Importing this takes longer than most of what it does: the engine is started before.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp

from headstock.assemble.front import load_prompter, model_card
from headstock.assemble.tokenizer_export import openable_path
from headstock.checkpoint import resolve
from headstock.config import Loaded, ServeSettings
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app
from headstock.wire.transport import EngineLink


@dataclass(frozen=True, slots=True)
class Api:
    """What answers requests.

    Attributes:
        app: The routes.
        door: What they talk to; not running yet.
    """

    app: ASGIApp
    door: Frontdoor


def build_api(loaded: Loaded[ServeSettings], link: EngineLink) -> Api:
    """Build what answers the requests for an engine.

    Args:
        loaded: Settings, and who set them.
        link: The connection to the engine.

    Raises:
        HeadstockError: A setting or the model is at fault.
    """
    settings = loaded.settings
    wanted = settings.model
    files = resolve(wanted.model, wanted.revision, needs_weights=wanted.load_format != "dummy")
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
    return Api(create_app(door, settings, metrics), door)
