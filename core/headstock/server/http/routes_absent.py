"""Routes of other servers that this version does not have: each says what to use instead."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError

_EMBED = "This version serves models that generate; use a server of embedding models."
_RANK = "Score each document with /generate: return_logprob, and token_ids_logprob of the labels."
_ABSENT = {
    "/v1/embeddings": ("embeddings", _EMBED),
    "/v2/embed": ("embeddings", _EMBED),
    "/api/embed": ("embeddings", _EMBED),
    "/api/embeddings": ("embeddings", _EMBED),
    "/encode": ("embeddings", _EMBED),
    "/classify": ("classification", _EMBED),
    "/v1/classify": ("classification", _EMBED),
    "/rerank": ("reranking", _RANK),
    "/v1/rerank": ("reranking", _RANK),
    "/v2/rerank": ("reranking", _RANK),
    "/v1/score": ("scoring", _RANK),
    "/v1/audio/transcriptions": ("transcription", "Use a server of speech models."),
    "/v1/images/generations": ("making images", "Use a server of image models."),
    "/v1/moderations": ("moderation", "Ask a guard model with /v1/chat/completions."),
    "/open_session": ("sessions", "Send the whole prompt again: what is equal is cached."),
    "/close_session": ("sessions", "Send the whole prompt again: what is equal is cached."),
    "/load_lora_adapter": ("adapters", "Serve a checkpoint with the adapter merged into it."),
    "/unload_lora_adapter": ("adapters", "Serve a checkpoint with the adapter merged into it."),
    "/update_weights_from_disk": ("changing weights", "Start another server on the new weights."),
    "/pause_generation": ("pausing", "Abort with /abort_request and send the requests again."),
    "/continue_generation": ("pausing", "Abort with /abort_request and send the requests again."),
}


def make_router() -> APIRouter:
    """Return the routes: each answers 501."""
    router = APIRouter(tags=["absent"])

    async def absent(request: Request) -> Response:
        what, remedy = _ABSENT[request.scope["path"].rstrip("/")]
        raise RequestError(f"This version has no {what}.", remedy=remedy, code="not_implemented")

    for path in _ABSENT:
        router.add_api_route(path, absent, methods=["POST"], include_in_schema=False)
    return router
