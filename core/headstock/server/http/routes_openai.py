"""``/v1/models``, ``/v1/chat/completions``, ``/v1/completions``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.adapters import Adapter
from headstock.server.completion import Delta
from headstock.server.generation import Generation
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import body_bytes, off_loop, read_body
from headstock.server.http.context import Serving, now, tenant_of
from headstock.server.http.in_session import in_session, record_turn
from headstock.server.http.schema import body_of
from headstock.server.http.streaming import DONE, Writer, fail_openai
from headstock.server.journal import Head
from headstock.server.model_card import ModelCard
from headstock.server.protocols.events import event
from headstock.server.protocols.openai_answers import (
    ChatAnswer,
    ChatShape,
    OpenAIStream,
    Shape,
    TextAnswer,
    TextShape,
)
from headstock.server.protocols.openai_bodies import ChatBody, CompletionBody, OpenAICall
from headstock.server.protocols.openai_calls import read_chat, read_completion
from headstock.server.protocols.openai_logprobs import Alternatives
from headstock.server.protocols.parameters import not_yet, unknown_model
from headstock.server.request import TextPrompt
from headstock.server.sessions import Sessions
from headstock.server.speech import Answer, Dialect
from headstock.text import Tokenizer


def make_router(serving: Serving, sessions: Sessions) -> APIRouter:
    """Return the routes; ``sessions`` are those that requests go on with."""
    router = APIRouter(prefix="/v1", tags=["openai"])
    frontdoor = serving.frontdoor

    @router.get("/models")
    async def list_models() -> Response:
        """List the served model, and the adapters that it is served with."""
        entries = [_model_entry(serving)]
        entries += [_adapter_entry(serving, adapter) for adapter in frontdoor.adapters.all]
        return json_answer({"object": "list", "data": entries})

    @router.get("/models/{name:path}")
    async def get_model(name: str) -> Response:
        """Describe one model."""
        if name == frontdoor.card.name:
            return json_answer(_model_entry(serving))
        for adapter in frontdoor.adapters.all:
            if adapter.name == name:
                return json_answer(_adapter_entry(serving, adapter))
        raise unknown_model(name, frontdoor.card)

    @router.post("/chat/completions", openapi_extra=body_of(ChatBody, ChatAnswer))
    async def chat(request: Request) -> Response:
        """Answer a chat."""
        return await _answer(serving, request, _CHAT, None, sessions)

    @router.post("/completions", openapi_extra=body_of(CompletionBody, TextAnswer))
    async def complete(request: Request) -> Response:
        """Go on from a prompt."""
        return await _answer(serving, request, _COMPLETIONS, None, sessions)

    return router


async def answer_chat(serving: Serving, request: Request, body: ChatBody | None = None) -> Response:
    """Answer a chat.

    Args:
        serving: What serves it.
        request: Whose.
        body: As it was sent; None: it is still to be read.

    Raises:
        RequestError: It is at fault, or cannot be served.
    """
    return await _answer(serving, request, _CHAT, body)


async def answer_text(
    serving: Serving, request: Request, body: CompletionBody | None = None
) -> Response:
    """Go on from a prompt.

    Args:
        serving: What serves it.
        request: Whose.
        body: As it was sent; None: it is still to be read.

    Raises:
        RequestError: It is at fault, or cannot be served.
    """
    return await _answer(serving, request, _COMPLETIONS, body)


@dataclass(frozen=True, slots=True)
class _Protocol:
    """What one of the two protocols has of its own.

    Attributes:
        name: In journals.
        body: What is sent.
        read: Body, model card, dialect and tenant to what is asked.
        shape: How answers are written.
    """

    name: str
    body: type[ChatBody | CompletionBody]
    read: Callable[[Any, ModelCard, Dialect, str], OpenAICall]
    shape: Callable[[OpenAICall, Generation, Tokenizer], Shape]


def _read_completion(
    body: CompletionBody, card: ModelCard, dialect: Dialect, tenant: str
) -> OpenAICall:
    return read_completion(body, card, tenant)


def _chat_shape(call: OpenAICall, generation: Generation, tokenizer: Tokenizer) -> Shape:
    return ChatShape(_alternatives(call, tokenizer))


def _text_shape(call: OpenAICall, generation: Generation, tokenizer: Tokenizer) -> Shape:
    return TextShape(_alternatives(call, tokenizer), _echoes(call, generation, tokenizer))


_CHAT = _Protocol("chat", ChatBody, read_chat, _chat_shape)
_COMPLETIONS = _Protocol("completions", CompletionBody, _read_completion, _text_shape)


async def _answer(
    serving: Serving,
    request: Request,
    protocol: _Protocol,
    body: ChatBody | CompletionBody | None,
    sessions: Sessions | None = None,
) -> Response:
    """Generate, and answer whole or streamed in the shape of the route.

    Without ``sessions`` a request that names one is refused.
    """

    def again(head: Head, generation: Generation) -> Writer:
        return _written_again(serving, protocol, head, generation)

    if (resumed := await serving.resumed(request, protocol.name, again)) is not None:
        return resumed
    frontdoor = serving.frontdoor
    if body is None:
        body = await read_body(request, protocol.body, serving.max_body_bytes)
    card = frontdoor.adapters.card_of(body.model, body.lora_path)
    call = await off_loop(
        body_bytes(request),
        protocol.read, body, card, frontdoor.prompter.dialect, tenant_of(request),
    )  # fmt: skip
    place = None
    if body.session_params is not None:
        if sessions is None:
            raise not_yet("session_params")
        place = sessions.go_on(tenant_of(request), body.session_params)
        placed = await in_session(frontdoor, call.requests, place)
        call = msgspec.structs.replace(call, requests=placed)
    tokenizer = tokenizer_of(serving)
    created = now()
    keeping = None
    if call.is_streamed:
        keeping = serving.keeping(request, protocol.name, body, call.id, created)
    del body  # it is as large as what was sent, and what comes waits
    requests = list(call.requests) if call.echo else call.requests  # an echo needs its prompt
    if call.is_streamed:
        return await serving.stream(
            request,
            requests,
            lambda generation: _writer(
                protocol,
                call,
                generation,
                tokenizer,
                created,
                over=lambda: record_turn(place, call.id, generation),
            ),
            keeping,
        )
    generation = await serving.whole(request, requests)
    if place is not None:
        record_turn(place, call.id, generation)
    answers = [Answer.whole(one, call.speech, tokenizer) for one in generation.completions]
    shape = protocol.shape(call, generation, tokenizer)
    return json_answer(shape.whole(call, answers, created))


def _written_again(
    serving: Serving, protocol: _Protocol, head: Head, generation: Generation
) -> Writer:
    """Return what writes the stream of a journal."""
    frontdoor, keeping = serving.frontdoor, head.keeping
    body = msgspec.json.decode(keeping.body, type=protocol.body)
    card = frontdoor.adapters.card_of(body.model, body.lora_path)
    call = protocol.read(body, card, frontdoor.prompter.dialect, "")
    call = msgspec.structs.replace(call, id=keeping.call_id)
    return _writer(protocol, call, generation, tokenizer_of(serving), keeping.created)


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


def _adapter_entry(serving: Serving, adapter: Adapter) -> dict[str, object]:
    return _model_entry(serving) | {
        "id": adapter.name,
        "created": adapter.created,
        "root": adapter.path,
        "parent": serving.frontdoor.card.name,
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


def _writer(
    protocol: _Protocol,
    call: OpenAICall,
    generation: Generation,
    tokenizer: Tokenizer,
    created: int,
    over: Callable[[], None] | None = None,
) -> Writer:
    shape = protocol.shape(call, generation, tokenizer)
    stream = OpenAIStream(call, generation.completions, shape, tokenizer, created)

    def write(deltas: Sequence[Delta]) -> bytes:
        return b"".join([stream.write(delta) for delta in deltas])

    def last() -> bytes:
        if over is not None:
            over()
        return (event(stream.last()) if call.include_usage else b"") + DONE

    return Writer(write, last, fail_openai)
