"""Cross-origin requests: which pages a browser lets read our answers.

Source: the Fetch standard, section 3.3. Keys travel in ``Authorization``, never in cookies, so no
answer allows credentials.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.http.answers import error_answer
from headstock.server.http.gate import App, Scope
from headstock.server.http.streaming import Message, Receive, Send

MAX_AGE_S = 600
"""How long a browser may keep the answer to a preflight. Seconds."""
_EXPOSED = b"x-request-id, retry-after, x-ignored-fields"
_METHODS = "GET, HEAD, POST, PUT, DELETE"


class Cors:
    """Lets pages of the allowed origins in.

    Args:
        app: What is behind; it needs no key for a preflight, which cannot carry one.
        origins: Allowed ones, such as ``https://chat.example``; ``*``: all.
    """

    def __init__(self, app: App, origins: Sequence[str]) -> None:
        self._app = app
        self._is_open = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin: bytes | None = headers.get(b"origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        is_allowed = self._is_open or origin in self._origins
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            asked = headers.get(b"access-control-request-headers", b"").decode("latin-1")
            answer = self._preflight(asked) if is_allowed else _refusal(origin)
            await answer(scope, receive, self._marked(send, origin, is_allowed))
            return
        await self._app(scope, receive, self._marked(send, origin, is_allowed))

    def _preflight(self, asked: str) -> Response:
        headers = {
            "access-control-allow-methods": _METHODS,
            "access-control-max-age": str(MAX_AGE_S),
        }
        if asked:
            headers["access-control-allow-headers"] = asked
        return Response(status_code=204, headers=headers)

    def _marked(self, send: Send, origin: bytes, is_allowed: bool) -> Send:
        """Return ``send``, adding to the head of the answer what the browser asks for."""
        more = [] if self._is_open else [(b"vary", b"Origin")]
        if is_allowed:
            more += [
                (b"access-control-allow-origin", b"*" if self._is_open else origin),
                (b"access-control-expose-headers", _EXPOSED),
            ]

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *more]
            await send(message)

        return marked


def _refusal(origin: bytes) -> Response:
    shown = origin[:128].decode("latin-1")
    return error_answer(
        RequestError(
            f"The origin {shown!r} may not use this server.",
            remedy="Start the server with --cors-origin for it.",
            code="origin_not_allowed",
        )
    )
