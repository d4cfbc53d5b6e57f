"""``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.completion import Delta
from headstock.server.generation import Generation
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import body_bytes, off_loop, read_body
from headstock.server.http.context import Serving, now, tenant_of
from headstock.server.http.schema import body_of
from headstock.server.protocols.events import event
from headstock.server.protocols.openai_answers import (
    ChatAnswer,
    ChatShape,
    OpenAIStream,
    Shape,
    TextAnswer,
    TextShape,
)
from headstock.server.protocols.openai_bodies import (
    ChatBody,
    CompletionBody,
    OpenAICall,
    read_chat,
    read_completion,
    unknown_model,
)
from headstock.server.protocols.openai_logprobs import Alternatives
from headstock.server.request import TextPrompt
from headstock.server.speech import Answer
from headstock.text import Tokenizer


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1", tags=["openai"])
    frontdoor = serving.frontdoor

    @router.get("/models")
    async def list_models() -> Response:
        """List the served model."""
        return json_answer({"object": "list", "data": [_model_entry(serving)]})

    @router.get("/models/{name:path}")
    async def get_model(name: str) -> Response:
        """Describe one model."""
        if name != frontdoor.card.name:
            raise unknown_model(name, frontdoor.card)
        return json_answer(_model_entry(serving))

    @router.post("/chat/completions", openapi_extra=body_of(ChatBody, ChatAnswer))
    async def chat(request: Request) -> Response:
        """Answer a chat."""
        body = await read_body(request, ChatBody, serving.max_body_bytes)
        dialect = frontdoor.prompter.dialect
        call = await off_loop(
            body_bytes(request), read_chat, body, frontdoor.card, dialect, tenant_of(request)
        )
        tokenizer = tokenizer_of(serving)
        shape = ChatShape(_alternatives(call, tokenizer))
        return await _answer(serving, request, call, tokenizer, lambda _: shape)

    @router.post("/completions", openapi_extra=body_of(CompletionBody, TextAnswer))
    async def complete(request: Request) -> Response:
        """Go on from a prompt."""
        body = await read_body(request, CompletionBody, serving.max_body_bytes)
        call = await off_loop(
            body_bytes(request), read_completion, body, frontdoor.card, tenant_of(request)
        )
        tokenizer = tokenizer_of(serving)
        alternatives = _alternatives(call, tokenizer)

        def shape(generation: Generation) -> TextShape:
            return TextShape(alternatives, _echoes(call, generation, tokenizer))

        return await _answer(serving, request, call, tokenizer, shape)

    return router


async def _answer(
    serving: Serving,
    request: Request,
    call: OpenAICall,
    tokenizer: Tokenizer,
    make_shape: Callable[[Generation], Shape],
) -> Response:
    """Generate, and answer whole or streamed in the shape of the route."""
    created = now()
    if call.is_streamed:
        return await serving.stream(
            request,
            call.requests,
            lambda generation: _writers(
                OpenAIStream(
                    call, generation.completions, make_shape(generation), tokenizer, created
                )
            ),
        )
    generation = await serving.whole(request, call.requests)
    answers = [Answer.whole(one, call.speech, tokenizer) for one in generation.completions]
    return json_answer(make_shape(generation).whole(call, answers, created))


def _model_entry(serving: Serving) -> dict[str, object]:
    card = serving.frontdoor.card
    return {
        "id": card.name,
        "object": "model",
        "created": card.created,
        "owned_by": "headstock",
        "root": card.name,
        "parent": None,
        "max_model_len": serving.frontdoor.max_length,
    }


def tokenizer_of(serving: Serving) -> Tokenizer:
    """Return the server's tokenizer.

    Raises:
        RequestError: It was started without one.
    """
    tokenizer = serving.frontdoor.prompter.tokenizer
    if tokenizer is None:
        raise RequestError(
            "This server was started without a tokenizer.",
            remedy="Use /generate with input_ids.",
            code="no_tokenizer",
        )
    return tokenizer


def _alternatives(call: OpenAICall, tokenizer: Tokenizer) -> Alternatives | None:
    if call.logprobs is None and call.prompt_logprobs is None:
        return None
    return Alternatives(tokenizer, call.logprobs or 0, call.prompt_logprobs or 0)


def _echoes(call: OpenAICall, generation: Generation, tokenizer: Tokenizer) -> list[str]:
    """Return what stands before each completion's text: with ``echo`` its prompt."""
    if not call.echo:
        return [""] * len(generation.completions)
    owners = [request for request in call.requests for _ in range(request.params.n)]
    return [
        request.prompt.text
        if isinstance(request.prompt, TextPrompt)
        else tokenizer.decode(completion.submit.prompt_ids, skip_special_tokens=False)
        for request, completion in zip(owners, generation.completions, strict=True)
    ]


def _writers(
    stream: OpenAIStream,
) -> tuple[Callable[[Sequence[Delta]], bytes], Callable[[], bytes]]:
    def write(deltas: Sequence[Delta]) -> bytes:
        return b"".join([stream.write(delta) for delta in deltas])

    def last() -> bytes:
        return event(stream.last()) if stream.call.include_usage else b""

    return write, last
