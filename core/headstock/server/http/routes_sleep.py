"""Sleep: the memory of the pages is given back while the model stays loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving
from headstock.server.http.schema import body_of

SLEEP_S = 60.0
"""How long the engine may take to end the step at hand and give its pages back. Seconds."""
WAKE_S = 600.0
"""How long it may take to make them again, and to capture its steps. Seconds."""
PAGES = "kv_cache"
TAGS = (PAGES, "weights", "cuda_graph")
Tag = Literal["kv_cache", "weights", "cuda_graph"]


class MemoryBody(msgspec.Struct, kw_only=True):
    """Body of ``/release_memory_occupation`` and ``/resume_memory_occupation``.

    Attributes:
        tags: What of the memory; None: all of it, the weights too.
    """

    tags: Annotated[list[Tag], msgspec.Meta(max_length=8)] | None = None


def make_router(serving: Serving) -> APIRouter:
    """Return the routes, by SGLang's names and by vLLM's."""
    router = APIRouter(tags=["control"])
    sleeping, frontdoor = serving.frontdoor.sleeping, serving.frontdoor

    async def fall_asleep() -> Response:
        frontdoor.check_up()
        num_bytes = await sleeping.sleep(SLEEP_S)
        return json_answer({"message": "The pages are given back.", "num_bytes": num_bytes})

    async def wake_up(tags: Sequence[str] | None) -> Response:
        _check_known(tags)
        if tags is not None and PAGES not in tags:
            return json_answer({"message": f"Nothing but {PAGES} was given back."})
        frontdoor.check_up()
        await sleeping.wake(WAKE_S)
        return json_answer({"message": "Requests are served."})

    @router.post("/release_memory_occupation", openapi_extra=body_of(MemoryBody))
    async def release(request: Request) -> Response:
        """Give the pages back; requests that run wait, and new ones are refused."""
        body = await read_body(request, MemoryBody, serving.max_body_bytes, may_be_empty=True)
        _check(body.tags)
        return await fall_asleep()

    @router.post("/resume_memory_occupation", openapi_extra=body_of(MemoryBody))
    async def resume(request: Request) -> Response:
        """Make the pages again, and go on."""
        body = await read_body(request, MemoryBody, serving.max_body_bytes, may_be_empty=True)
        return await wake_up(body.tags)

    @router.post("/sleep")
    async def sleep(
        level: str | None = None, tags: Annotated[list[str] | None, Query()] = None
    ) -> Response:
        """Do the same as ``/release_memory_occupation``."""
        if level is not None:
            raise RequestError(
                f"level is {level[:16]!r}; every level but pages alone takes the weights along,"
                " which stay on the device.",
                remedy="Leave it out, and send tags=kv_cache.",
                field="level",
                code="not_implemented",
            )
        _check(tags)
        return await fall_asleep()

    @router.post("/wake_up")
    async def wake(tags: Annotated[list[str] | None, Query()] = None) -> Response:
        """Do the same as ``/resume_memory_occupation``."""
        return await wake_up(tags)

    @router.get("/is_sleeping")
    async def is_sleeping() -> Response:
        """Tell whether the pages are given back."""
        return json_answer({"is_sleeping": sleeping.is_asleep})

    return router


def _check(tags: Sequence[str] | None) -> None:
    """Refuse what is more than the pages, or less."""
    _check_known(tags)
    if tags is None or "weights" in tags:
        asked = "There are no tags, which asks for" if tags is None else "tags has"
        raise RequestError(
            f"{asked} the weights, and these stay on the device while the model is loaded.",
            remedy=f"Send tags with {PAGES} alone; end the server to free the weights.",
            field="tags",
            code="not_implemented",
        )
    if PAGES not in tags:
        raise RequestError(
            f"tags has no {PAGES}; nothing else can be given back by itself.",
            remedy=f"Send {PAGES}; captured steps go along with it.",
            field="tags",
            code="invalid_value",
        )


def _check_known(tags: Sequence[str] | None) -> None:
    for tag in tags or ():
        if tag not in TAGS:
            raise RequestError(
                f"tags has {tag[:64]!r}; there are {', '.join(TAGS)}.",
                remedy=f"Send {PAGES} alone.",
                field="tags",
                code="invalid_value",
            )
