"""Routes of other servers that this version does not have: each says what to use instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError


@dataclass(frozen=True, slots=True)
class Absent:
    """Routes that other servers have for one purpose.

    Attributes:
        what: What this version has none of.
        remedy: What to use instead.
        routes: Paths, each with its methods.
    """

    what: str
    remedy: str
    routes: dict[str, tuple[str, ...]]


def _post(*paths: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(paths, ("POST",))


def _both(*paths: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(paths, ("GET", "POST"))


ABSENT = (
    Absent(
        "transcription",
        "Use a server of speech models.",
        _post("/v1/audio/transcriptions", "/v1/audio/translations"),
    ),
    Absent("speech", "Use a server of speech models.", _post("/v1/audio/speech")),
    Absent(
        "live transcription",
        "Use a server of speech models.",
        {"/v1/realtime": ("GET",)},
    ),
    Absent(
        "making of images",
        "Use a server of image models.",
        _post("/v1/images/generations", "/v1/images/edits"),
    ),
    Absent("moderation", "Ask a guard model with /v1/chat/completions.", _post("/v1/moderations")),
    Absent(
        "decisions of models trained for them",
        "Ask any model with /v1/decisions.",
        _post("/v1/systemone"),
    ),
    Absent(
        "sending of weights to the running server",
        "Write them to a folder and use /update_weights_from_disk.",
        _post(
            "/update_weights_from_tensor",
            "/update_weights_from_distributed",
            "/update_weights_from_ipc",
            "/init_weights_update_group",
            "/destroy_weights_update_group",
            "/begin_weight_update",
            "/end_weight_update",
        ),
    ),
    Absent(
        "sending of weights",
        "Read them from the model's folder, which GET /model_info names.",
        {
            **_both("/weights_checker"),
            **_post(
                "/init_weights_send_group_for_remote_instance",
                "/send_weights_to_remote_instance",
            ),
            "/remote_instance_transfer_engine_info": ("GET",),
        },
    ),
    Absent(
        "adapters from tensors",
        "Write the adapter to a folder and use /load_lora_adapter.",
        _post("/load_lora_adapter_from_tensors"),
    ),
    Absent(
        "settings that change while the server runs",
        "Start it with other flags; /server_info has those at hand.",
        {"/set_internal_state": ("POST", "PUT"), **_both("/configure_logging", "/set_trace_level")},
    ),
    Absent(
        "switch for its garbage collector or its speed",
        "Leave it out: what was loaded is kept out of collections from the start on.",
        _both("/freeze_gc", "/slow_down"),
    ),
    Absent(
        "record of which experts are used",
        "Leave it out.",
        _both(
            "/start_expert_distribution_record",
            "/stop_expert_distribution_record",
            "/dump_expert_distribution_record",
        ),
    ),
    Absent(
        "change of roles of prefill and decode",
        "Start a server in the other role.",
        _post("/pd_role_switch"),
    ),
    Absent(
        "attaching of cache tiers while the server runs",
        "Set the tiers with flags at the start.",
        {
            "/hicache/storage-backend": ("GET", "PUT", "DELETE"),
            **_post("/hicache/storage-backend/clear"),
            "/get_hicache_l3_cache_layout": ("GET",),
        },
    ),
    Absent(
        "corpus for drafts",
        "Drafts come from each request's own text with --speculation ngram.",
        {
            **_post("/add_external_corpus", "/remove_external_corpus"),
            "/list_external_corpora": ("GET",),
        },
    ),
    Absent(
        "registry of models",
        "Name the model when the server is started; headstock pull gets one.",
        {
            **_post("/api/pull", "/api/push", "/api/create", "/api/copy"),
            "/api/delete": ("DELETE",),
            "/api/blobs/{digest}": ("POST",),
        },
    ),
    Absent("page of the API", "Read /openapi.json.", {"/docs": ("GET",), "/redoc": ("GET",)}),
)


def make_router() -> APIRouter:
    """Return the routes: each answers 501."""
    router = APIRouter(tags=["absent"])
    for absent in ABSENT:
        answer = _answerer(absent)
        for path, methods in absent.routes.items():
            router.add_api_route(path, answer, methods=list(methods), include_in_schema=False)
    return router


def _answerer(absent: Absent) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        raise RequestError(
            f"This version has no {absent.what}.", remedy=absent.remedy, code="not_implemented"
        )

    return answer
