"""The server's routes without a server: for batches of requests on an engine of this process."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from headstock.config import EngineSettings, ServeSettings
from headstock.observe.metrics import Metrics
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.app import create_app

BASE = "http://localhost"
"""A name that is never looked up: nothing leaves this process."""


class LocalRoutes:
    """Answers posts as a server would.

    Args:
        door: Of the engine.
        settings: Of the engine.
    """

    def __init__(self, door: Frontdoor, settings: EngineSettings) -> None:
        self._door = door
        self._settings = settings
        self._client: httpx.AsyncClient | None = None

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and JSON of the answer; called in the front door's event loop."""
        answer = await self._open().post(path, json=body)
        return answer.status_code, msgspec.json.decode(answer.content)

    def _open(self) -> httpx.AsyncClient:
        """Make the application when it is first asked: most engines never are."""
        if self._client is None:
            names = EngineSettings.__struct_fields__
            settings = ServeSettings(**{name: getattr(self._settings, name) for name in names})
            metrics = Metrics(self._door.card.name, lambda: self._door.status.state)
            app = create_app(self._door, settings, metrics)
            transport = httpx.ASGITransport(app)  # pyright: ignore[reportArgumentType]
            self._client = httpx.AsyncClient(
                transport=transport,
                base_url=BASE,
                timeout=None,  # nosec B113
            )
        return self._client
