"""``/v1/embeddings``, ``/encode`` and what other servers call the same: texts to vectors."""

from __future__ import annotations

import uuid

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.server.completion import Completion
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import body_bytes, off_loop, read_body
from headstock.server.http.context import Serving, clock, now, tenant_of
from headstock.server.http.schema import body_of
from headstock.server.protocols import embeddings, ollama
from headstock.server.protocols.embeddings import (
    CohereEmbedBody,
    EmbeddingsAnswer,
    EmbeddingsBody,
    EncodeBody,
    OllamaEmbedBody,
    OllamaEmbeddingsBody,
    PoolCall,
)
from headstock.server.protocols.pooling import PoolingBody, pooling_answer, read_pooling
from headstock.server.vectors import as_base64, vector_of

_NS = 1e9


def make_router(serving: Serving) -> APIRouter:
    """Return the routes of OpenAI, Cohere and SGLang."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/embeddings", openapi_extra=body_of(EmbeddingsBody, EmbeddingsAnswer))
    async def embed(request: Request) -> Response:
        """Return the vectors of texts, of a chat, or of images with texts."""
        body = await read_body(request, EmbeddingsBody, serving.max_body_bytes)
        return await answer_embeddings(serving, request, body)

    @router.post("/v2/embed", openapi_extra=body_of(CohereEmbedBody))
    async def embed_cohere(request: Request) -> Response:
        """Return the vectors of texts, as Cohere does."""
        body = await read_body(request, CohereEmbedBody, serving.max_body_bytes)
        card = serving.frontdoor.served_card
        call = embeddings.read_cohere(body, card, tenant_of(request))
        found = await pooled(serving, request, call)
        vectors = [vector_of(one, card, call.dimensions) for one in found]
        kinds = body.embedding_types or ["float"]
        return json_answer(
            {
                "id": uuid.uuid4().hex,
                "texts": body.texts,
                "embeddings": {
                    kind: [v.tolist() if kind == "float" else as_base64(v) for v in vectors]
                    for kind in kinds
                },
                "meta": {"billed_units": {"input_tokens": _num_tokens(found)}},
            }
        )

    @router.post("/pooling", openapi_extra=body_of(PoolingBody))
    async def pool(request: Request) -> Response:
        """Return what texts or their tokens yield, as vLLM does."""
        body = await read_body(request, PoolingBody, serving.max_body_bytes)
        card, size = serving.frontdoor.served_card, body_bytes(request)
        call = await off_loop(size, read_pooling, body, card, tenant_of(request))
        found = await pooled(serving, request, call)
        return json_answer(await off_loop(size, pooling_answer, body, call, found, card, now()))

    @router.put("/encode", openapi_extra=body_of(EncodeBody))
    @router.post("/encode", openapi_extra=body_of(EncodeBody))
    async def encode(request: Request) -> Response:
        """Return the vectors of texts, as SGLang does."""
        return await _encode(serving, request)

    @router.put("/classify", openapi_extra=body_of(EncodeBody))
    @router.post("/classify", openapi_extra=body_of(EncodeBody))
    async def classify(request: Request) -> Response:
        """Return what a reward model or classifier gives texts, as SGLang does."""
        return await _encode(serving, request)

    return router


def make_ollama_router(serving: Serving) -> APIRouter:
    """Return the routes of Ollama."""
    router = APIRouter(prefix="/api", tags=["ollama"])

    @router.post("/embed", openapi_extra=body_of(OllamaEmbedBody))
    async def embed(request: Request) -> Response:
        """Return the vectors of texts, as Ollama does."""
        begun_s = clock()
        body = await read_body(request, OllamaEmbedBody, serving.max_body_bytes, is_any_type=True)
        card = serving.frontdoor.served_card
        ollama.check_name(body.model, card)
        texts = [body.input] if isinstance(body.input, str) else body.input
        call = embeddings.read_texts(
            texts,
            card,
            field="input",
            tenant=tenant_of(request),
            keep_first=card.max_length if body.truncate else None,
            dimensions=body.dimensions,
        )
        found = await pooled(serving, request, call)
        return json_answer(
            {
                "model": body.model,
                "embeddings": [vector_of(one, card, call.dimensions).tolist() for one in found],
                "total_duration": int((clock() - begun_s) * _NS),
                "load_duration": 0,
                "prompt_eval_count": _num_tokens(found),
            }
        )

    @router.post("/embeddings", openapi_extra=body_of(OllamaEmbeddingsBody))
    async def embed_one(request: Request) -> Response:
        """Return the vector of a text, as Ollama did before ``/api/embed``."""
        body = await read_body(
            request, OllamaEmbeddingsBody, serving.max_body_bytes, is_any_type=True
        )
        card = serving.frontdoor.served_card
        ollama.check_name(body.model, card)
        call = embeddings.read_texts(
            [body.prompt],
            card,
            field="prompt",
            tenant=tenant_of(request),
            keep_first=card.max_length,
        )
        (found,) = await pooled(serving, request, call)
        return json_answer({"embedding": vector_of(found, card).tolist()})

    return router


async def answer_embeddings(serving: Serving, request: Request, body: EmbeddingsBody) -> Response:
    """Return the vectors of texts.

    Raises:
        RequestError: They are at fault, or cannot be served.
    """
    card = serving.frontdoor.served_card
    size = body_bytes(request)
    dialect, tenant = serving.frontdoor.prompter.dialect, tenant_of(request)
    call = await off_loop(size, embeddings.read_embeddings, body, card, tenant, dialect)
    found = await pooled(serving, request, call)
    format_ = body.encoding_format
    return json_answer(
        await off_loop(size, embeddings.embeddings_answer, call, found, card, format_)
    )


async def pooled(serving: Serving, request: Request, call: PoolCall) -> list[Completion]:
    """Return the completions of a call once all have ended.

    Raises:
        RequestError: A request is at fault, or could not be served.
    """
    return list((await serving.whole(request, list(call.requests))).completions)


async def _encode(serving: Serving, request: Request) -> Response:
    body = await read_body(request, EncodeBody, serving.max_body_bytes)
    card = serving.frontdoor.served_card
    call = embeddings.read_encode(
        body, card, type_stride=serving.frontdoor.type_stride, tenant=tenant_of(request)
    )
    found = await pooled(serving, request, call)
    answers = [
        embeddings.encode_answer(one, item.rid or "", card, call.dimensions)
        for one, item in zip(found, call.requests, strict=True)
    ]
    return json_answer(answers if call.is_list else answers[0])


def _num_tokens(completions: list[Completion]) -> int:
    return sum(len(completion.submit.prompt_ids) for completion in completions)
