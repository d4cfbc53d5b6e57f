"""What every request passes: its id and its key. Plain ASGI, nothing per chunk."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from headstock.errors import RequestError
from headstock.observe.log import request_logged_as
from headstock.observe.metrics import Metrics
from headstock.server.http.answers import error_answer
from headstock.server.http.bodies import IGNORED
from headstock.server.http.streaming import Message, Receive, Send
from headstock.server.keys import KeyRing

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/live", "/ready", "/health"})
"""Routes that need no key: probes cannot send one."""
WATCHED_PATHS = OPEN_PATHS | {"/health_generate", "/metrics"}
"""Routes that machines ask all the time: a line for each would bury the others."""
_SANE_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_SANE_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_LISTED = 16
log = logging.getLogger("headstock.http")


class Gate:
    """Lets requests with a key in, and names them.

    Args:
        app: What is behind.
        keys: Who may enter.
        metrics: Where refusals are counted.
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
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the connection knows to send no body
        headers = dict(scope["headers"])
        request_id = uuid.uuid4().hex.encode()
        named = headers.get(b"x-request-id", b"")
        shown = named if _SANE_ID.fullmatch(named) else request_id
        scope["headstock.request_id"] = request_id.decode()

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", shown)]
                if ignored := scope.get(IGNORED):
                    message["headers"].append((b"x-ignored-fields", _listed(ignored)))
                path = getattr(scope.get("route"), "path", "no route")
                level = logging.DEBUG if path in WATCHED_PATHS else logging.INFO
                log.log(level, "%s %s %d", scope["method"], path, message["status"])
            await send(message)

        authorization = headers.get(b"authorization", b"").decode("latin-1")
        with request_logged_as(shown.decode()):
            await self._serve(scope, receive, tagged, authorization)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, authorization: str) -> None:
        tenant = self._keys.tenant(authorization)
        if tenant is None and (scope["path"].rstrip("/") not in OPEN_PATHS):
            refusal = RequestError(
                "The API key is missing or wrong.",
                remedy="Send Authorization: Bearer KEY.",
                code="invalid_api_key",
            )
            self._metrics.refused(refusal.code)
            await error_answer(refusal)(scope, receive, send)
            return
        scope["headstock.tenant"] = tenant or ""
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The server stops, and the connection with it: nobody is left to answer.
            log.info("cut off by the shutdown")


def _listed(names: list[str]) -> bytes:
    """Return the first of ``names`` that a header can carry."""
    sane = [name.encode() for name in names if _SANE_NAME.fullmatch(name)]
    return b", ".join(sane[:MAX_LISTED]) or b"?"
