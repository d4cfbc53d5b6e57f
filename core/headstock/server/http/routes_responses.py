"""``/v1/responses``."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.completion import Delta
from headstock.server.errors import message_of
from headstock.server.generation import Generation
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, tenant_of
from headstock.server.http.routes_openai import tokenizer_of
from headstock.server.http.schema import body_of
from headstock.server.http.streaming import Writer
from headstock.server.protocols import responses
from headstock.server.protocols.named_events import named_event
from headstock.server.speech import Answer


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/responses", tags=["responses"])
    frontdoor = serving.frontdoor
    store = responses.ResponseStore()

    @router.post("", openapi_extra=body_of(responses.ResponsesBody))
    async def respond(request: Request) -> Response:
        """Answer, in items."""
        body = await read_body(request, responses.ResponsesBody, serving.max_body_bytes)
        tokenizer = tokenizer_of(serving)
        tenant = tenant_of(request)
        dialect = frontdoor.prompter.dialect
        call = responses.read_response(body, frontdoor.card, dialect, store, tenant)

        def writer(generation: Generation) -> Writer:
            stream = responses.ResponseStream(call, generation.completions[0], tokenizer)

            def write(deltas: Sequence[Delta]) -> bytes:
                return stream.write(deltas)

            def last() -> bytes:
                if body.store:
                    kept = responses.stored_of(call, stream.response, stream.answer)
                    store.keep(tenant, kept)
                return b""

            return Writer(write, last, _fail)

        if body.stream:
            return await serving.stream(request, [call.request], writer)
        completion = (await serving.whole(request, [call.request])).completions[0]
        answer = Answer.whole(completion, call.speech, tokenizer)
        items = responses.items_of(call, answer)
        response = responses.response_of(call, completion, items, answer)
        if body.store:
            store.keep(tenant, responses.stored_of(call, response, answer))
        return json_answer(response)

    @router.get("/{response_id}")
    async def retrieve(request: Request, response_id: str) -> Response:
        """Return a response that was asked to be kept."""
        return json_answer(store.find(tenant_of(request), response_id).response)

    @router.delete("/{response_id}")
    async def delete(request: Request, response_id: str) -> Response:
        """Forget a response."""
        store.forget(tenant_of(request), response_id)
        return json_answer({"id": response_id, "object": "response", "deleted": True})

    return router


def _fail(error: RequestError) -> bytes:
    return named_event(
        {
            "type": "error",
            "sequence_number": 0,
            "code": error.code,
            "message": message_of(error),
            "param": error.field,
        }
    )
