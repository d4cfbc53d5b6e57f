"""``/v1/decisions``: questions with a few answers each, answered by one token."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, tenant_of
from headstock.server.http.routes_openai import tokenizer_of
from headstock.server.http.schema import body_of
from headstock.server.protocols.decisions import (
    DecisionsBody,
    decisions_answer,
    read_decisions,
)


def make_router(serving: Serving) -> APIRouter:
    """Return the route."""
    router = APIRouter(tags=["ranking"])
    frontdoor = serving.frontdoor

    @router.post("/v1/decisions", openapi_extra=body_of(DecisionsBody))
    async def decide(request: Request) -> Response:
        """Return how likely each answer to each question is."""
        body = await read_body(request, DecisionsBody, serving.max_body_bytes)
        card = frontdoor.adapters.card_of(body.model)
        call = await asyncio.to_thread(
            read_decisions,
            body,
            card,
            frontdoor.prompter,
            tokenizer_of(serving),
            tenant_of(request),
        )
        found = (await serving.whole(request, call.requests)).completions
        return json_answer(decisions_answer(call, found))

    return router
