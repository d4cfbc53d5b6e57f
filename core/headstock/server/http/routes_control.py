"""Probes, and control of the running engine."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.http.answers import error_answer, json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, caller_of
from headstock.server.http.gate import not_admin
from headstock.server.http.schema import body_of
from headstock.wire.messages import PauseMode

ENGINE_ANSWER_S = 10.0


class PauseBody(msgspec.Struct):
    """Body of ``/pause_generation``."""

    mode: PauseMode = "abort"


class ContinueBody(msgspec.Struct):
    """Body of ``/continue_generation``; memory caches of libraries are left to them."""

    torch_empty_cache: bool = True


class AbortBody(msgspec.Struct):
    """Body of ``/abort_request``."""

    rid: str | None = None
    abort_all: bool = False


def make_probes(serving: Serving) -> APIRouter:
    """Return the routes that need no key: none of them runs a forward pass."""
    router = APIRouter(tags=["probes"])
    frontdoor = serving.frontdoor

    @router.get("/v2/health/live")
    @router.get("/live")
    async def live() -> Response:
        """Tell that the event loop turns."""
        return json_answer({"status": "live"})

    async def ready() -> Response:
        """Tell whether a request would be taken, from the engine's heartbeat."""
        if frontdoor.is_ready:
            return json_answer({"status": "ready"})
        return error_answer(frontdoor.unavailable())

    for path in ("/ready", "/health", "/ping", "/v2/health/ready"):
        router.add_api_route(path, ready, methods=["GET"])
    return router


def make_router(serving: Serving) -> APIRouter:
    """Return the routes that need a key where keys are set."""
    router = APIRouter(tags=["control"])
    frontdoor = serving.frontdoor

    @router.get("/health_generate")
    async def health_generate() -> Response:
        """Tell the same as ``/health``: progress is known from the heartbeat."""
        if frontdoor.is_ready:
            return json_answer({"status": "ready"})
        return error_answer(frontdoor.unavailable())

    async def flush_cache(timeout: float = 0.0) -> Response:
        """Forget every cached prefix; refused while requests run."""
        answer = await frontdoor.flush_cache(timeout if timeout > 0 else ENGINE_ANSWER_S)
        if not answer.was_idle:
            raise RequestError(
                "Requests are running; the prefixes that they use were kept.",
                remedy="Wait until they end, or abort them.",
                code="not_idle",
            )
        return json_answer(
            {"message": "Cache flushed.", "freed_pages": answer.freed_pages, "success": True}
        )

    async def abort_request(request: Request) -> Response:
        """End requests: the caller's own of exactly this name, or all."""
        body = await read_body(request, AbortBody, serving.max_body_bytes)
        caller = caller_of(request)
        if body.abort_all:
            if not caller.is_admin:
                raise not_admin()
            frontdoor.abort_all()
            return json_answer({"aborted": True})
        owner = None if caller.is_admin else caller.tenant
        return json_answer({"aborted": frontdoor.abort(body.rid or "", owner)})

    for path in ("/flush_cache", "/reset_prefix_cache"):
        router.add_api_route(path, flush_cache, methods=["POST"])
    router.add_api_route(
        "/abort_request", abort_request, methods=["POST"], openapi_extra=body_of(AbortBody)
    )
    return router


def make_pauses(serving: Serving) -> APIRouter:
    """Return the routes that hold generation back."""
    router = APIRouter(tags=["control"])
    frontdoor = serving.frontdoor

    @router.post("/pause_generation", openapi_extra=body_of(PauseBody))
    async def pause(request: Request) -> Response:
        """Compute no more steps: requests are taken, and wait."""
        body = await read_body(request, PauseBody, serving.max_body_bytes, may_be_empty=True)
        await frontdoor.pause(body.mode, ENGINE_ANSWER_S)
        return json_answer({"message": "Generation is paused.", "status": "ok"})

    @router.post("/continue_generation", openapi_extra=body_of(ContinueBody))
    async def resume(request: Request) -> Response:
        """Go on after a pause."""
        await read_body(request, ContinueBody, serving.max_body_bytes, may_be_empty=True)
        await frontdoor.unpause(ENGINE_ANSWER_S)
        return json_answer({"message": "Generation continues.", "status": "ok"})

    return router
