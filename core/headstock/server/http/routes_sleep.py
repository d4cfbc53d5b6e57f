"""Sleep: the memory of the pages is given back, or that of the weights as well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.frontdoor import Frontdoor
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving
from headstock.server.http.schema import body_of

SLEEP_S = 60.0
"""How long the engine may take to end the step at hand and give its memory back. Seconds."""
WAKE_S = 600.0
"""How long it may take to load the weights, make the pages and capture its steps. Seconds."""
PAGES = "kv_cache"
WEIGHTS = "weights"
TAGS = (PAGES, WEIGHTS, "cuda_graph")
LEVELS = ("1", "2")
"""vLLM's: weights kept on the host, or nowhere. Here files have them, and the host their pages."""
Tag = Literal["kv_cache", "weights", "cuda_graph"]


class MemoryBody(msgspec.Struct, kw_only=True):
    """Body of ``/release_memory_occupation`` and ``/resume_memory_occupation``.

    Attributes:
        tags: What of the memory; None: all of it.
    """

    tags: Annotated[list[Tag], msgspec.Meta(max_length=8)] | None = None


def make_router(serving: Serving) -> APIRouter:
    """Return the routes, by SGLang's names and by vLLM's."""
    router = APIRouter(tags=["control"])
    sleeping = serving.frontdoor.sleeping
    orders = _Orders(serving.frontdoor)

    @router.post("/release_memory_occupation", openapi_extra=body_of(MemoryBody))
    async def release(request: Request) -> Response:
        """Give memory back; requests that run wait, and new ones are refused."""
        body = await read_body(request, MemoryBody, serving.max_body_bytes, may_be_empty=True)
        return await orders.sleep(body.tags)

    @router.post("/resume_memory_occupation", openapi_extra=body_of(MemoryBody))
    async def resume(request: Request) -> Response:
        """Take the memory again, and go on."""
        body = await read_body(request, MemoryBody, serving.max_body_bytes, may_be_empty=True)
        return await orders.wake(body.tags)

    @router.post("/sleep")
    async def sleep(
        level: str | None = None, tags: Annotated[list[str] | None, Query()] = None
    ) -> Response:
        """Do the same as ``/release_memory_occupation``; each level takes weights and pages."""
        if level is not None:
            _check_level(level)
            tags = None
        return await orders.sleep(tags)

    @router.post("/wake_up")
    async def wake(tags: Annotated[list[str] | None, Query()] = None) -> Response:
        """Do the same as ``/resume_memory_occupation``."""
        return await orders.wake(tags)

    @router.get("/is_sleeping")
    async def is_sleeping() -> Response:
        """Tell whether memory is given back."""
        return json_answer({"is_sleeping": sleeping.is_asleep})

    return router


class _Orders:
    """What the tags of a request to sleep or to wake ask for.

    Args:
        frontdoor: Whose engine it is.
    """

    def __init__(self, frontdoor: Frontdoor) -> None:
        self._door, self._sleeping = frontdoor, frontdoor.sleeping

    async def sleep(self, tags: Sequence[str] | None) -> Response:
        """Give back what ``tags`` name."""
        _check_known(tags)
        sleeping = self._sleeping
        if tags is not None and PAGES not in tags and not (WEIGHTS in tags and sleeping.is_asleep):
            raise RequestError(
                f"tags has no {PAGES}; nothing else can be given back by itself.",
                remedy=f"Send {PAGES}; captured steps go along with it.",
                field="tags",
                code="invalid_value",
            )
        if not sleeping.is_resting:
            self._door.check_up()
        if tags is None or WEIGHTS in tags:
            await sleeping.rest(SLEEP_S)
            return json_answer({"message": "The weights and the pages are given back."})
        num_bytes = await sleeping.sleep(SLEEP_S)
        return json_answer({"message": "The pages are given back.", "num_bytes": num_bytes})

    async def wake(self, tags: Sequence[str] | None) -> Response:
        """Take again what ``tags`` name."""
        _check_known(tags)
        sleeping = self._sleeping
        if tags is not None and PAGES not in tags:
            if WEIGHTS in tags:
                await sleeping.wake_weights(WAKE_S)
                return json_answer({"message": "The weights are loaded."})
            return json_answer({"message": f"Nothing but {PAGES} and {WEIGHTS} was given back."})
        if sleeping.is_resting and tags is not None and WEIGHTS not in tags:
            raise RequestError(
                f"tags has no {WEIGHTS}, which are given back, too.",
                remedy=f"Send {WEIGHTS} before, or both.",
                field="tags",
                code="invalid_value",
            )
        if not sleeping.is_resting:
            self._door.check_up()
        await sleeping.wake(WAKE_S)
        return json_answer({"message": "Requests are served."})


def _check_level(level: str) -> None:
    if level not in LEVELS:
        raise RequestError(
            f"level is {level[:16]!r}; there are {', '.join(LEVELS)}.",
            remedy=f"Send tags={PAGES} to give the pages back alone.",
            field="level",
            code="invalid_value",
        )


def _check_known(tags: Sequence[str] | None) -> None:
    for tag in tags or ():
        if tag not in TAGS:
            raise RequestError(
                f"tags has {tag[:64]!r}; there are {', '.join(TAGS)}.",
                remedy=f"Send {PAGES}, or {WEIGHTS} and {PAGES}.",
                field="tags",
                code="invalid_value",
            )
