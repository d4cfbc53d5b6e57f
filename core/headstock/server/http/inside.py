"""The server asks itself: a request that passes all that others pass but the connection."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp

from headstock.observe.log import request_logged_as
from headstock.server.batch_runner import Answered
from headstock.server.keys import Caller

CALLER = "headstock.caller"
"""Where a request's scope has who sends it; set before the gate: the server itself does."""
Message = MutableMapping[str, Any]


async def ask_inside(app: ASGIApp, caller: Caller, path: str, body: bytes) -> Answered:
    """Return what ``app`` answers to a POST of JSON.

    Args:
        app: The application, with its gate.
        caller: On whose behalf it is asked.
        path: The route.
        body: JSON.
    """
    request_id = uuid.uuid4().hex
    sent = asyncio.Event()
    status = 500
    parts: list[bytes] = []

    async def receive() -> Message:
        if sent.is_set():
            await asyncio.Event().wait()  # this client does not leave
        sent.set()
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    headers = [(b"content-type", b"application/json")]
    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": None,
        "server": None,
        CALLER: caller,
        "headstock.request_id": request_id,
        "headstock.shown_id": request_id,
    }
    with request_logged_as(request_id):
        await app(scope, receive, send)
    return Answered(status, b"".join(parts), request_id)
