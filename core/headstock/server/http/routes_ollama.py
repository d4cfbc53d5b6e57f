"""``/api/…``: what Ollama's clients ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock import __version__
from headstock.errors import RequestError
from headstock.server.completion import Delta
from headstock.server.errors import message_of
from headstock.server.generation import Generation
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, clock, tenant_of
from headstock.server.http.routes_openai import tokenizer_of
from headstock.server.http.schema import body_of
from headstock.server.http.streaming import Writer
from headstock.server.model_card import ModelCard
from headstock.server.protocols import ollama

_NDJSON = b"application/x-ndjson"


class ShowBody(msgspec.Struct):
    """Body of ``/api/show``."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/api", tags=["ollama"])
    frontdoor = serving.frontdoor

    def card_of(name: str) -> ModelCard:
        """Return the card of the model, or adapter, of that name as Ollama's clients write it."""
        return frontdoor.adapters.card_of(name.removesuffix(":latest"))

    @router.post("/chat", openapi_extra=body_of(ollama.OllamaChatBody))
    async def chat(request: Request) -> Response:
        """Answer a chat."""
        body = await _read(serving, request, ollama.OllamaChatBody)
        dialect = frontdoor.prompter.dialect
        call = ollama.read_chat(body, card_of(body.model), dialect, tenant_of(request))
        return await _answer(serving, request, call)

    @router.post("/generate", openapi_extra=body_of(ollama.OllamaGenerateBody))
    async def generate(request: Request) -> Response:
        """Answer a prompt."""
        body = await _read(serving, request, ollama.OllamaGenerateBody)
        dialect = frontdoor.prompter.dialect
        call = ollama.read_generate(body, card_of(body.model), dialect, tenant_of(request))
        return await _answer(serving, request, call)

    @router.get("/tags")
    async def tags() -> Response:
        """List the served model, and the adapters that it is served with."""
        names = [frontdoor.card.name, *(adapter.name for adapter in frontdoor.adapters.all)]
        return json_answer({"models": [ollama.describe(card_of(name)) for name in names]})

    @router.get("/ps")
    async def running() -> Response:
        """List the loaded model."""
        more = {"expires_at": "9999-12-31T23:59:59Z", "size_vram": 0}
        more["context_length"] = frontdoor.max_length
        return json_answer({"models": [ollama.describe(frontdoor.card) | more]})

    @router.get("/version")
    async def version() -> Response:
        """Return the version."""
        return json_answer({"version": __version__})

    @router.post("/show", openapi_extra=body_of(ShowBody))
    async def show(request: Request) -> Response:
        """Describe the served model."""
        body = await _read(serving, request, ShowBody)
        ollama.check_name(body.model or body.name or "", frontdoor.card)
        return json_answer(_shown(serving))

    return router


async def _read(serving: Serving, request: Request, kind: type[Any]) -> Any:
    # Ollama's own server takes JSON of any content type, and curl's default is a form's.
    return await read_body(request, kind, serving.max_body_bytes, is_any_type=True)


async def _answer(serving: Serving, request: Request, call: ollama.OllamaCall) -> Response:
    begun_s = clock()
    if call.request is None:
        return json_answer(ollama.loaded(call))
    tokenizer = tokenizer_of(serving)

    def writer(generation: Generation) -> Writer:
        stream = ollama.OllamaStream(call, generation.completions[0], tokenizer, begun_s)

        def write(deltas: Sequence[Delta]) -> bytes:
            return stream.write(deltas, clock())

        return Writer(write, lambda: b"", _fail, content_type=_NDJSON, ping=b"")

    if call.is_streamed:
        return await serving.stream(request, [call.request], writer)
    completion = (await serving.whole(request, [call.request])).completions[0]
    stream = ollama.OllamaStream(call, completion, tokenizer, begun_s)
    return Response(stream.whole(clock()), media_type="application/json")


def _fail(error: RequestError) -> bytes:
    return ollama.fail(error, message_of(error))


def _shown(serving: Serving) -> dict[str, Any]:
    card, prompter = serving.frontdoor.card, serving.frontdoor.prompter
    dialect = prompter.dialect
    has_tools = dialect.calls is not None and dialect.takes_tools
    capabilities = ["completion" if card.task == "generate" else "embedding"]
    capabilities += ["tools"] if has_tools else []
    capabilities += ["thinking"] if dialect.reasoning is not None else []
    return {
        "modelfile": f"FROM {card.model_path}",
        "parameters": "\n".join(
            f"{name} {value}" for name, value in card.sampling_defaults.items()
        ),
        "template": prompter.template.source if prompter.template is not None else "",
        "details": ollama.describe(card)["details"],
        "model_info": {
            "general.architecture": card.model_type,
            "general.basename": card.name,
            f"{card.model_type}.context_length": serving.frontdoor.max_length,
            f"{card.model_type}.vocab_size": card.vocab_size,
        },
        "capabilities": capabilities,
        "modified_at": ollama.describe(card)["modified_at"],
    }
