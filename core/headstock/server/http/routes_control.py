"""Probes, information, and control of the running engine."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from headstock import __version__
from headstock.errors import RequestError
from headstock.observe.metrics import CONTENT_TYPE
from headstock.server.http.answers import error_answer, json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, caller_of
from headstock.server.http.gate import not_admin
from headstock.server.http.schema import body_of

ENGINE_ANSWER_S = 10.0


class AbortBody(msgspec.Struct):
    """Body of ``/abort_request``."""

    rid: str | None = None
    abort_all: bool = False


def make_probes(serving: Serving) -> APIRouter:
    """Return the routes that need no key: none of them runs a forward pass."""
    router = APIRouter(tags=["probes"])
    frontdoor = serving.frontdoor

    @router.get("/live")
    async def live() -> Response:
        """Tell that the event loop turns."""
        return json_answer({"status": "live"})

    async def ready() -> Response:
        """Tell whether a request would be taken, from the engine's heartbeat."""
        if frontdoor.is_ready:
            return json_answer({"status": "ready"})
        return error_answer(frontdoor.unavailable())

    for path in ("/ready", "/health"):
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

    async def model_info() -> Response:
        """Describe the model."""
        return json_answer(_model_info(serving))

    async def server_info() -> Response:
        """Describe the server: its settings, limits and counters."""
        return json_answer(_server_info(serving))

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

    async def metrics() -> Response:
        """Return the metrics as Prometheus reads them."""
        return Response(serving.metrics.render(), media_type=CONTENT_TYPE)

    async def version() -> Response:
        """Return the version."""
        return json_answer({"version": __version__})

    for path in ("/model_info", "/get_model_info"):
        router.add_api_route(path, model_info, methods=["GET"])
    for path in ("/server_info", "/get_server_info"):
        router.add_api_route(path, server_info, methods=["GET"])
    router.add_api_route("/flush_cache", flush_cache, methods=["POST"])
    router.add_api_route(
        "/abort_request", abort_request, methods=["POST"], openapi_extra=body_of(AbortBody)
    )
    router.add_api_route("/metrics", metrics, methods=["GET"], response_class=PlainTextResponse)
    router.add_api_route("/version", version, methods=["GET"])
    return router


def _model_info(serving: Serving) -> dict[str, Any]:
    card = serving.frontdoor.card
    return {
        "model_path": card.model_path,
        "served_model_name": card.name,
        "tokenizer_path": card.tokenizer_path,
        "is_generation": True,
        "preferred_sampling_params": card.sampling_defaults,
        "weight_version": "default",
        "load_format": serving.settings.model.load_format,
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": card.model_type,
        "architectures": card.architectures,
        "max_model_len": serving.frontdoor.max_length,
        "dtype": card.dtype,
        "quantization": card.quantization or None,
    }


def _attention(serving: Serving) -> str | None:
    """Return who computes attention."""
    started = serving.frontdoor.status.started
    return None if started is None else started.model_facts.get("attention")


def _server_info(serving: Serving) -> dict[str, Any]:
    frontdoor = serving.frontdoor
    status = frontdoor.status
    settings: dict[str, Any] = msgspec.to_builtins(serving.settings)
    for secret in ("api_keys", "api_key_file"):
        settings["server"].pop(secret, None)
    flat = {key: value for section in settings.values() for key, value in section.items()}
    limits = status.started.limits if status.started is not None else None
    info: dict[str, Any] = {
        **flat,
        "model_path": frontdoor.card.model_path,
        "served_model_name": frontdoor.card.name,
        "tokenizer_path": frontdoor.card.tokenizer_path,
        "context_length": frontdoor.max_length,
        "disable_radix_cache": not serving.settings.cache.prefix_cache,
        "schedule_policy": serving.settings.scheduler.policy,
        "mem_fraction_static": serving.settings.cache.memory_fraction,
        "attention_backend": _attention(serving),
        "dp_size": 1,
    }
    if limits is not None:
        pages = limits.groups[0] if limits.groups else None
        info |= {
            "max_total_num_tokens": pages.page_tokens * (pages.num_pages - 1) if pages else 0,
            "max_req_input_len": frontdoor.max_length - 1,
            "max_running_requests": limits.num_slots,
            "page_size": pages.page_tokens if pages else None,
        }
    state: dict[str, Any] = msgspec.to_builtins(status.state) if status.state is not None else {}
    return info | {
        "settings": settings,
        "model_facts": status.started.model_facts if status.started is not None else {},
        "engine": {"phase": status.phase, "starts": status.num_starts},
        "live_requests": frontdoor.num_live,
        "uptime_s": time.time() - serving.started_at,
        "internal_states": [state],
        "version": __version__,
    }
