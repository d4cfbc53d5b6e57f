"""What clouds ask their containers: SageMaker's ``/invocations``, Vertex' ``/predict``."""

from __future__ import annotations

from typing import Annotated, Any, cast

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import body_bytes, off_loop, read_body, read_one_of
from headstock.server.http.context import Serving, clock, tenant_of
from headstock.server.http.resuming import HEADER
from headstock.server.http.routes_embeddings import answer_embeddings
from headstock.server.http.routes_openai import answer_chat, answer_text
from headstock.server.http.schema import body_of
from headstock.server.protocols import native_answers, native_bodies
from headstock.server.protocols.embeddings import EmbeddingsBody
from headstock.server.protocols.openai_answers import ChatAnswer
from headstock.server.protocols.openai_bodies import ChatBody, CompletionBody
from headstock.server.protocols.parameters import not_yet
from headstock.server.speech import Dialect

_SHAPES = {"messages": ChatBody, "prompt": CompletionBody, "input": EmbeddingsBody}
"""What ``/invocations`` takes, by the key that tells it."""


class PredictBody(msgspec.Struct):
    """Body of ``/predict``.

    Attributes:
        instances: Bodies of ``/generate``, each with ``text`` or ``input_ids``.
        parameters: Sampling parameters of all that have none of their own.
    """

    instances: Annotated[
        list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=native_bodies.MAX_PROMPTS)
    ]
    parameters: dict[str, Any] | None = None


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["clouds"])

    @router.post("/invocations", openapi_extra=body_of(ChatBody, ChatAnswer))
    async def invoke(request: Request) -> Response:
        """Answer a chat, a prompt or texts to embed, as the body has messages, prompt or input."""
        if HEADER in request.headers:
            return await answer_chat(serving, request)
        body = await read_one_of(request, _SHAPES, serving.max_body_bytes)
        if isinstance(body, ChatBody):
            return await answer_chat(serving, request, body)
        if isinstance(body, CompletionBody):
            return await answer_text(serving, request, body)
        return await answer_embeddings(serving, request, cast("EmbeddingsBody", body))

    async def predict(request: Request) -> Response:
        """Go on from each instance's prompt."""
        begun_s = clock()
        body = await read_body(request, PredictBody, serving.max_body_bytes)
        dialect = serving.frontdoor.prompter.dialect
        calls = await off_loop(body_bytes(request), _calls, body, tenant_of(request), dialect)
        requests = [request for call in calls for request in call.requests]
        generation = await serving.whole(request, requests)
        tokenizer = serving.frontdoor.prompter.tokenizer
        predictions = [
            native_answers.answer(one, one.submit.id, tokenizer, elapsed_s=clock() - begun_s)
            for one in generation.completions
        ]
        return json_answer({"predictions": predictions})

    for path in ("/predict", "/vertex_generate"):
        router.add_api_route(path, predict, methods=["POST"], openapi_extra=body_of(PredictBody))
    return router


def _calls(body: PredictBody, tenant: str, dialect: Dialect) -> list[native_bodies.NativeCall]:
    """Return what each instance asks for."""
    calls: list[native_bodies.NativeCall] = []
    for place, instance in enumerate(body.instances):
        where = f"instances[{place}]"
        given = {"sampling_params": body.parameters or {}, **instance}
        try:
            converted = msgspec.convert(given, native_bodies.GenerateBody)
            call = native_bodies.read(converted, tenant, dialect)
        except msgspec.ValidationError as error:
            raise RequestError(
                f"{where}: {error}.", remedy="See /generate.", field=where, code="invalid_type"
            ) from error
        except RequestError as error:
            field = where if error.field is None else f"{where}.{error.field}"
            raise RequestError(
                f"{where}: {error.problem}", remedy=error.remedy, field=field, code=error.code
            ) from error
        if call.is_batch or call.is_streamed:
            raise not_yet(where, f"{where} with several prompts, n over 1, or stream")
        calls.append(call)
    return calls
