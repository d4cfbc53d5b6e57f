"""``/v1/batches``: requests in a file, answered when there is time."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.batch_runner import BatchRunner
from headstock.server.batches import ENDPOINTS, BatchBook
from headstock.server.files import FileBook
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, owner_of
from headstock.server.http.routes_files import page
from headstock.server.http.schema import body_of

MAX_LISTED = 100
Label = Annotated[str, msgspec.Meta(max_length=512)]


class BatchBody(msgspec.Struct):
    """Body of ``/v1/batches``."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"] = "24h"
    metadata: Annotated[dict[str, Label], msgspec.Meta(max_length=16)] | None = None


def make_router(
    serving: Serving, batches: BatchBook, files: FileBook, runner: BatchRunner
) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/batches", tags=["files"])

    @router.post("", openapi_extra=body_of(BatchBody))
    async def begin(request: Request) -> Response:
        """Take a batch."""
        body = await read_body(request, BatchBody, serving.max_body_bytes)
        if body.endpoint not in ENDPOINTS:
            raise RequestError(
                f"endpoint is {body.endpoint[:64]!r}.",
                remedy=f"Use one of {', '.join(ENDPOINTS)}.",
                field="endpoint",
            )
        owner = owner_of(request)
        file = files.find(owner, body.input_file_id, "input_file_id")
        batch = batches.begin(owner, file.id, body.endpoint, body.metadata)
        runner.wake()
        return json_answer(batch)

    @router.get("")
    async def all_batches(request: Request, limit: int = 20, after: str | None = None) -> Response:
        """List the caller's batches, newest first."""
        found = batches.all(owner_of(request))
        found.reverse()
        values = [msgspec.to_builtins(batch) for batch in found]
        return json_answer(page(values, limit, after, MAX_LISTED))

    @router.get("/{batch_id}")
    async def describe(request: Request, batch_id: str) -> Response:
        """Tell how a batch stands."""
        return json_answer(batches.find(owner_of(request), batch_id))

    @router.post("/{batch_id}/cancel")
    async def cancel(request: Request, batch_id: str) -> Response:
        """End a batch; what it has by then is kept."""
        owner = owner_of(request)
        return json_answer(runner.cancel(owner, batches.find(owner, batch_id)))

    return router
