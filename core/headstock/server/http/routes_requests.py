"""``/requests``: what became of the last requests of the caller."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.http.answers import json_answer
from headstock.server.http.context import Serving, caller_of, tenant_of
from headstock.server.http.gate import not_admin

DEFAULT_COUNT = 50


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["requests"])
    records = serving.frontdoor.records
    size = serving.settings.server.request_records

    @router.get("/requests")
    async def list_requests(
        request: Request, limit: int = DEFAULT_COUNT, everyone: bool = False
    ) -> Response:
        """List the last requests of the caller, the latest first; an admin may see everyone's."""
        if not 1 <= limit <= max(1, size):
            raise RequestError(
                f"limit is {limit}; 1 to {max(1, size)} are kept.",
                remedy="Ask for fewer, or raise --request-records.",
                field="limit",
                code="invalid_value",
            )
        found = records.last(_owner(request, everyone), limit)
        return json_answer({"object": "list", "data": [record.tell() for record in found]})

    @router.get("/requests/{name}")
    async def get_request(request: Request, name: str, everyone: bool = False) -> Response:
        """Tell why one waited, what it found in the cache, and its steps."""
        record = records.find(_owner(request, everyone), name)
        if record is None:
            raise RequestError(
                f"There is no record of a request {name[:64]!r} of yours.",
                remedy=f"The last {size} are kept: see GET /requests, and --request-records.",
                code="not_found",
            )
        return json_answer(record.tell_all())

    return router


def _owner(request: Request, everyone: bool) -> str | None:
    """Return whose records are asked for; None: all."""
    if not everyone:
        return tenant_of(request)
    if not caller_of(request).is_admin:
        raise not_admin()
    return None
