"""What the server is, has and does: for clients that ask, and for machines that watch."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from headstock import __version__
from headstock.errors import RequestError
from headstock.observe.metrics import CONTENT_TYPE
from headstock.server.capabilities import capabilities
from headstock.server.http.answers import json_answer
from headstock.server.http.context import Serving


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["control"])
    frontdoor = serving.frontdoor

    async def model_info() -> Response:
        """Describe the model."""
        return json_answer(_model_info(serving))

    async def server_info() -> Response:
        """Describe the server: its settings, limits and counters."""
        return json_answer(_server_info(serving))

    async def abilities() -> Response:
        """Tell what this server can do, and what excludes what."""
        started = frontdoor.status.started
        return json_answer(capabilities(serving.settings, started.limits if started else None))

    @router.get("/v1/loads")
    async def loads(dp_rank: int | None = None, include: str = "all") -> Response:
        """Tell how busy the engine is, as balancers of load ask."""
        return json_answer(_loads(serving, dp_rank, include))

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
    router.add_api_route("/capabilities", abilities, methods=["GET"])
    router.add_api_route("/metrics", metrics, methods=["GET"], response_class=PlainTextResponse)
    router.add_api_route("/version", version, methods=["GET"])
    return router


_SECTIONS = ("core", "memory", "spec", "lora", "disagg", "queues", "all")


def _loads(serving: Serving, rank: int | None, include: str) -> dict[str, Any]:
    """Return the load of the one engine; sections that it does not have are left out.

    Raises:
        RequestError: There is no such section or rank.
    """
    wanted = {name.strip() for name in include.split(",")}
    if not wanted <= set(_SECTIONS):
        raise RequestError(
            f"include is {include[:64]!r}.",
            remedy=f"Use some of {', '.join(_SECTIONS)}, with commas between them.",
            field="include",
        )
    if rank not in (None, 0):
        raise RequestError(
            f"dp_rank is {rank}; this server has one engine.", remedy="Use 0.", field="dp_rank"
        )
    frontdoor = serving.frontdoor
    status = frontdoor.status
    state, started = status.state, status.started
    if state is None or started is None:
        raise frontdoor.unavailable()
    groups = started.limits.groups
    page_tokens = groups[0].page_tokens if groups else 0
    total = page_tokens * state.total_pages
    used = total - page_tokens * (state.free_pages + state.cached_pages)
    slots = started.limits.num_slots
    load: dict[str, Any] = {
        "dp_rank": 0,
        "num_running_reqs": state.running,
        "num_waiting_reqs": state.waiting,
        "num_total_reqs": state.running + state.waiting,
        "num_used_tokens": used,
        "num_total_tokens": used,
        "max_total_num_tokens": total,
        "max_running_requests": slots,
        "token_usage": used / total if total else 0.0,
        "utilization": state.running / slots,
        "is_paused": state.is_paused,
    }
    prompt = state.totals.get("prompt_tokens", 0.0)
    load["cache_hit_rate"] = state.totals.get("cached_tokens", 0.0) / prompt if prompt else 0.0
    if wanted & {"queues", "all"}:
        load["queues"] = {"waiting": state.waiting}
    return {
        "timestamp": datetime.now(UTC).isoformat(),
        "version": __version__,
        "dp_rank_count": 1,
        "loads": [load],
    }


def _model_info(serving: Serving) -> dict[str, Any]:
    card = serving.frontdoor.card
    return {
        "model_path": serving.frontdoor.weights.path,
        "served_model_name": card.name,
        "tokenizer_path": card.tokenizer_path,
        "is_generation": card.task == "generate",
        "task": card.task,
        "preferred_sampling_params": card.sampling_defaults,
        "weight_version": serving.frontdoor.weights.version,
        "load_format": serving.settings.model.load_format,
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null",
        "has_image_understanding": serving.frontdoor.prompter.media is not None,
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
