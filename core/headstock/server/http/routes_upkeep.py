"""What the engine does between two steps: load other weights, read some back, record a profile."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.errors import message_of, status_of
from headstock.server.http.answers import error_value, json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving
from headstock.server.http.schema import body_of

LOAD_S = 3600.0
"""How long the engine may take to load weights. Seconds."""
PROFILE_S = 300.0
"""How long it may take to begin a profile, or to write one. Seconds."""
READ_S = 120.0
"""How long it may take to read a weight back. Seconds."""
MAX_ROWS = 1024
"""Rows of a weight that are read at once."""
MAX_PROFILED = 256
"""Steps of a profile: a thousand events each are kept in memory."""


class UpdateWeightsBody(msgspec.Struct, kw_only=True):
    """Body of ``/update_weights_from_disk``."""

    model_path: str
    weight_version: str | None = None
    abort_all_requests: bool = False
    flush_cache: bool = True
    load_format: str | None = None


class WeightVersionBody(msgspec.Struct, kw_only=True):
    """Body of ``/update_weight_version``."""

    new_version: str
    abort_all_requests: bool = False


class GetWeightBody(msgspec.Struct, kw_only=True):
    """Body of ``/get_weights_by_name``.

    Attributes:
        name: Of a weight, as the checkpoint has it.
        truncate_size: The first so many rows, or values of a weight of one dimension.
    """

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    truncate_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_ROWS)] = 100


class StartProfileBody(msgspec.Struct, kw_only=True):
    """Body of ``/start_profile``."""

    output_dir: str | None = None
    num_steps: Annotated[int, msgspec.Meta(ge=1, le=MAX_PROFILED)] | None = None
    with_stack: bool | None = None
    record_shapes: bool | None = None


def make_router(serving: Serving) -> APIRouter:
    """Return the routes of weights."""
    router = APIRouter(tags=["control"])
    frontdoor = serving.frontdoor

    @router.post("/update_weights_from_disk", openapi_extra=body_of(UpdateWeightsBody))
    async def update_weights(request: Request) -> Response:
        """Serve other weights of the same model; requests that run are computed anew with them."""
        body = await read_body(request, UpdateWeightsBody, serving.max_body_bytes)
        _check(body)
        frontdoor.check_up()
        try:
            reply = await frontdoor.weights.load(
                body.model_path, body.weight_version, LOAD_S, is_aborting=body.abort_all_requests
            )
        except RequestError as error:
            return _answer(message_of(error), error)
        return _answer("The weights are loaded.", num_paused_requests=reply.count)

    @router.post("/update_weight_version", openapi_extra=body_of(WeightVersionBody))
    async def rename_weights(request: Request) -> Response:
        """Call the weights something else."""
        body = await read_body(request, WeightVersionBody, serving.max_body_bytes)
        if body.abort_all_requests:
            frontdoor.abort_all()
        frontdoor.weights.rename(body.new_version)
        return _answer("The weights are renamed.", new_version=body.new_version)

    async def get_weight(request: Request) -> Response:
        """Tell the first rows of a weight, as the engine computes with them."""
        body = await read_body(request, GetWeightBody, serving.max_body_bytes)
        frontdoor.check_up()
        found = await frontdoor.calls.read_weight(body.name, body.truncate_size, READ_S)
        return json_answer(memoryview(found.values).cast("f", found.shape).tolist())

    extra = body_of(GetWeightBody)
    for method in ("GET", "POST"):  # SGLang's clients send the body with either
        router.add_api_route(
            "/get_weights_by_name",
            get_weight,
            methods=[method],
            openapi_extra=extra,
        )
    return router


def make_profiles(serving: Serving) -> APIRouter:
    """Return the routes of profiles."""
    router = APIRouter(tags=["control"])
    frontdoor = serving.frontdoor

    @router.post("/start_profile", openapi_extra=body_of(StartProfileBody))
    async def start_profile(request: Request) -> Response:
        """Record what the next steps of the engine spend their time with."""
        body = await read_body(request, StartProfileBody, serving.max_body_bytes, may_be_empty=True)
        frontdoor.check_up()
        reply = await frontdoor.calls.start_profile(
            body.output_dir or "",
            body.num_steps or MAX_PROFILED,
            PROFILE_S,
            has_stacks=bool(body.with_stack),
            has_shapes=bool(body.record_shapes),
        )
        return _answer("Steps are recorded.", path=reply.path)

    @router.post("/stop_profile")
    async def stop_profile(request: Request) -> Response:
        """Write what was recorded, for Perfetto."""
        frontdoor.check_up()
        reply = await frontdoor.calls.stop_profile(PROFILE_S)
        return _answer("The profile is written.", path=reply.path, num_steps=reply.count)

    return router


def _check(body: UpdateWeightsBody) -> None:
    """Refuse what is not done when weights are loaded."""
    if not body.flush_cache:
        raise RequestError(
            "flush_cache is false; cached prefixes of other weights are never used here.",
            remedy="Leave it out.",
            field="flush_cache",
            code="not_supported",
        )
    if body.load_format not in (None, "auto"):
        raise RequestError(
            f"load_format is {body.load_format[:64]!r}; weights are read as their files say.",
            remedy="Leave it out.",
            field="load_format",
            code="not_supported",
        )


def _answer(message: str, error: RequestError | None = None, **more: Any) -> Response:
    """Answer as SGLang does: whether it is done, and what went wrong."""
    found: dict[str, Any] = {"success": error is None, "message": message, **more}
    if error is None:
        return json_answer(found)
    found["error"] = error_value(error).error
    return json_answer(found, status=status_of(error.code))
