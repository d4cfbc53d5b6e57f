"""Loading and unloading LoRA adapters while the server runs, as SGLang's and vLLM's clients do."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from headstock.errors import RequestError
from headstock.server.errors import message_of, status_of
from headstock.server.http.answers import error_value, json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving
from headstock.server.http.schema import body_of

DRAIN_S = 60.0
"""How long requests with an adapter that is unloaded may go on by default. Seconds."""


class LoadBody(msgspec.Struct, kw_only=True):
    """Body of ``/load_lora_adapter``."""

    lora_name: str
    lora_path: str
    pinned: bool | None = None
    load_inplace: bool | None = None


class UnloadBody(msgspec.Struct, kw_only=True):
    """Body of ``/unload_lora_adapter``; ``timeout_s``: how long requests with it may go on."""

    lora_name: str
    timeout_s: Annotated[float, msgspec.Meta(ge=0, le=3600)] = DRAIN_S


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["adapters"])
    frontdoor = serving.frontdoor

    async def load(request: Request) -> LoadBody:
        body = await read_body(request, LoadBody, serving.max_body_bytes)
        _check(body)
        await frontdoor.adapters.load(body.lora_name, body.lora_path)
        return body

    async def unload(request: Request) -> UnloadBody:
        body = await read_body(request, UnloadBody, serving.max_body_bytes)
        await frontdoor.unload_adapter(body.lora_name, body.timeout_s)
        return body

    def loaded(error: RequestError | None = None) -> Response:
        """Answer as SGLang does: what is loaded now, and what went wrong."""
        found: dict[str, Any] = {
            "success": error is None,
            "error_message": "" if error is None else message_of(error),
            "loaded_adapters": {one.name: one.path for one in frontdoor.adapters.all},
        }
        if error is None:
            return json_answer(found)
        found["error"] = error_value(error).error
        return json_answer(found, status=status_of(error.code))

    @router.post("/load_lora_adapter", openapi_extra=body_of(LoadBody))
    async def load_native(request: Request) -> Response:
        """Load an adapter."""
        try:
            await load(request)
        except RequestError as error:
            return loaded(error)
        return loaded()

    @router.post("/unload_lora_adapter", openapi_extra=body_of(UnloadBody))
    async def unload_native(request: Request) -> Response:
        """Unload an adapter."""
        try:
            await unload(request)
        except RequestError as error:
            return loaded(error)
        return loaded()

    @router.post("/v1/load_lora_adapter", openapi_extra=body_of(LoadBody))
    async def load_v1(request: Request) -> Response:
        """Load an adapter; answer as vLLM does."""
        name = (await load(request)).lora_name
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @router.post("/v1/unload_lora_adapter", openapi_extra=body_of(UnloadBody))
    async def unload_v1(request: Request) -> Response:
        """Unload an adapter; answer as vLLM does."""
        name = (await unload(request)).lora_name
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    return router


def _check(body: LoadBody) -> None:
    """Refuse what is not done when an adapter is loaded."""
    for field in ("pinned", "load_inplace"):
        if getattr(body, field):
            raise RequestError(
                f"{field} is true, which this version does not do.",
                remedy="Leave it out; unload an adapter before its name is used again.",
                field=field,
                code="not_supported",
            )
