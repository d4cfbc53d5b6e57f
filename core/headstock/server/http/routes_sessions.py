"""Opening and closing sessions; ``/generate`` continues them."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, tenant_of
from headstock.server.http.schema import body_of
from headstock.server.protocols.parameters import not_yet
from headstock.server.sessions import Name, Sessions

Capacity = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Timeout = Annotated[float, msgspec.Meta(gt=0, le=86400 * 30)]


class OpenSessionBody(msgspec.Struct):
    """Body of ``/open_session``.

    Attributes:
        capacity_of_str_len: Longest context of a turn; a token counts as one character.
        session_id: Its name; None: one is made.
        streaming: Not done; every turn is cached like any other prompt.
        timeout: It closes when nothing is asked of it for so long. Seconds.
    """

    capacity_of_str_len: Capacity
    session_id: Name | None = None
    streaming: bool | None = None
    timeout: Timeout | None = None


class CloseSessionBody(msgspec.Struct):
    """Body of ``/close_session``."""

    session_id: Name


def make_router(serving: Serving, sessions: Sessions) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["native"])

    @router.post("/open_session", openapi_extra=body_of(OpenSessionBody))
    async def open_session(request: Request) -> Response:
        """Open a session and return its id."""
        body = await read_body(request, OpenSessionBody, serving.max_body_bytes)
        if body.streaming:
            raise not_yet("streaming")
        session = sessions.open(
            tenant_of(request),
            name=body.session_id,
            capacity=body.capacity_of_str_len,
            timeout_s=body.timeout,
        )
        return json_answer(session.id)

    @router.post("/close_session", openapi_extra=body_of(CloseSessionBody), response_class=Response)
    async def close_session(request: Request) -> Response:
        """Forget a session; requests of it that run go on."""
        body = await read_body(request, CloseSessionBody, serving.max_body_bytes)
        sessions.close(tenant_of(request), body.session_id)
        return Response(status_code=200)

    return router
