"""What every request passes: its id, its key, its count. Plain ASGI, nothing per chunk."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from headstock.errors import RequestError
from headstock.server.http.answers import error_answer
from headstock.server.http.streaming import Message, Receive, Send
from headstock.server.keys import KeyRing
from headstock.server.metrics import Metrics

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/live", "/ready", "/health"})
"""Routes that need no key: probes cannot send one."""
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
log = logging.getLogger("headstock.http")


class Gate:
    """Lets requests with a key in, names them, counts them.

    Args:
        app: What is behind.
        keys: Who may enter.
        metrics: Where answers are counted.
    """

    def __init__(self, app: App, keys: KeyRing, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = uuid.uuid4().hex.encode()
        named = headers.get(b"x-request-id", b"")
        shown = named if _SANE_ID.fullmatch(named) else request_id
        scope["headstock.request_id"] = request_id.decode()

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", shown)]
                self._count(scope, message["status"], shown)
            await send(message)

        authorization = headers.get(b"authorization", b"").decode("latin-1")
        tenant = self._keys.tenant(authorization)
        if tenant is None and scope["path"] not in OPEN_PATHS:
            refusal = RequestError(
                "The API key is missing or wrong.",
                remedy="Send Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
            await error_answer(refusal)(scope, receive, tagged)
            return
        scope["headstock.tenant"] = tenant or ""
        try:
            await self._app(scope, receive, tagged)
        except asyncio.CancelledError:
            # The server stops, and the connection with it: nobody is left to answer.
            log.info("%s was cut off by the shutdown", shown.decode())

    def _count(self, scope: Scope, status: int, shown: bytes) -> None:
        route = scope.get("route")
        path: str = getattr(route, "path", "unknown")
        self._metrics.answered(path, status)
        log.info("%s %s %s %d", shown.decode(), scope["method"], path, status)
