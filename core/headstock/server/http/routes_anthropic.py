"""``/v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.generation import Generation
from headstock.server.http.answers import anthropic_error, json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, now, tenant_of
from headstock.server.http.routes_openai import tokenizer_of
from headstock.server.http.schema import body_of
from headstock.server.http.streaming import Writer
from headstock.server.journal import Head
from headstock.server.protocols import anthropic
from headstock.server.protocols.events import named_event
from headstock.server.protocols.parameters import check_model
from headstock.text import Tokenizer

_ROUTE = "messages"


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/messages", tags=["anthropic"])
    frontdoor = serving.frontdoor

    @router.post("", openapi_extra=body_of(anthropic.MessagesBody))
    async def messages(request: Request) -> Response:
        """Answer a chat as Anthropic's clients read it."""

        def again(head: Head, generation: Generation) -> Writer:
            return _written_again(serving, head, generation)

        if (resumed := await serving.resumed(request, _ROUTE, again)) is not None:
            return resumed
        body = await read_body(request, anthropic.MessagesBody, serving.max_body_bytes)
        tokenizer = tokenizer_of(serving)
        dialect = frontdoor.prompter.dialect
        card = frontdoor.adapters.card_of(body.model)
        call = anthropic.read_messages(body, card, dialect, tenant_of(request))
        keeping = None
        if call.is_streamed:
            keeping = serving.keeping(request, _ROUTE, body, call.id, now())
        del body  # it is as large as what was sent, and what comes waits
        if call.is_streamed:
            return await serving.stream(
                request,
                [call.request],
                lambda generation: _writer(call, generation, tokenizer),
                keeping,
            )
        generation = await serving.whole(request, [call.request])
        return json_answer(anthropic.message(call, generation.completions[0], tokenizer))

    @router.post("/count_tokens", openapi_extra=body_of(anthropic.CountBody))
    async def count_tokens(request: Request) -> Response:
        """Return how many tokens a chat has."""
        body = await read_body(request, anthropic.CountBody, serving.max_body_bytes)
        check_model(body.model, frontdoor.adapters.card_of(body.model))
        prompt, _ = anthropic.read_prompt(body, frontdoor.prompter.dialect)
        return json_answer({"input_tokens": len(await frontdoor.encode(prompt))})

    return router


def _written_again(serving: Serving, head: Head, generation: Generation) -> Writer:
    """Return what writes the stream of a journal."""
    frontdoor, keeping = serving.frontdoor, head.keeping
    body = msgspec.json.decode(keeping.body, type=anthropic.MessagesBody)
    card = frontdoor.adapters.card_of(body.model)
    call = anthropic.read_messages(body, card, frontdoor.prompter.dialect)
    call = msgspec.structs.replace(call, id=keeping.call_id)
    return _writer(call, generation, tokenizer_of(serving))


def _writer(call: anthropic.MessagesCall, generation: Generation, tokenizer: Tokenizer) -> Writer:
    stream = anthropic.MessagesStream(call, generation.completions[0], tokenizer)
    return Writer(stream.write, lambda: b"", _fail, ping=named_event({"type": "ping"}))


def _fail(error: RequestError) -> bytes:
    return named_event(msgspec.to_builtins(anthropic_error(error)))
