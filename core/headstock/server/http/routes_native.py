"""``/generate``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.server.completion import Delta
from headstock.server.generation import Generation
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import body_bytes, off_loop, read_body
from headstock.server.http.context import Serving, now, tenant_of
from headstock.server.http.in_session import in_session, record_turn
from headstock.server.http.schema import body_of
from headstock.server.http.streaming import DONE, Writer, fail_openai
from headstock.server.journal import Head
from headstock.server.protocols import native_answers, native_bodies
from headstock.server.sessions import Sessions

_ROUTE = "generate"


def make_router(serving: Serving, sessions: Sessions) -> APIRouter:
    """Return the route; ``sessions`` are those that requests go on with."""
    router = APIRouter(tags=["native"])
    tokenizer = serving.frontdoor.prompter.tokenizer

    @router.put("/generate", openapi_extra=body_of(native_bodies.GenerateBody))
    @router.post("/generate", openapi_extra=body_of(native_bodies.GenerateBody))
    async def generate(request: Request) -> Response:
        """Go on from one prompt or several."""

        def again(head: Head, generation: Generation) -> Writer:
            return _written_again(serving, head, generation)

        if (resumed := await serving.resumed(request, _ROUTE, again)) is not None:
            return resumed
        begun_s = time.monotonic()
        body = await read_body(request, native_bodies.GenerateBody, serving.max_body_bytes)
        call = await off_loop(body_bytes(request), _read, serving, body, tenant_of(request))
        place = None
        if body.session_params is not None:
            place = sessions.go_on(tenant_of(request), body.session_params)
            requests = await in_session(serving.frontdoor, call.requests, place)
            call = msgspec.structs.replace(call, requests=requests)
        keeping = None
        if call.is_streamed:
            keeping = serving.keeping(request, _ROUTE, body, "", now())
        del body  # it is as large as what was sent, and what comes waits
        rids = [item.rid or "" for item in call.requests for _ in range(item.params.n)]

        def writer(generation: Generation) -> Writer:
            stream = native_answers.NativeStream(call, generation.completions, rids, tokenizer)
            return _writer(stream, begun_s, lambda: record_turn(place, rids[0], generation))

        if call.is_streamed:
            return await serving.stream(request, call.requests, writer, keeping)
        generation = await serving.whole(request, call.requests)
        record_turn(place, rids[0], generation)
        answers = [
            native_answers.answer(
                completion,
                rid,
                tokenizer,
                wants_text=call.wants_text,
                wants_prompt_ids=call.wants_prompt_ids,
                elapsed_s=time.monotonic() - begun_s,
            )
            for completion, rid in zip(generation.completions, rids, strict=True)
        ]
        return json_answer(answers if call.is_batch else answers[0])

    return router


def _read(
    serving: Serving, body: native_bodies.GenerateBody, tenant: str
) -> native_bodies.NativeCall:
    dialect = serving.frontdoor.prompter.dialect
    return native_bodies.read(body, tenant, dialect, has_sessions=True)


def _written_again(serving: Serving, head: Head, generation: Generation) -> Writer:
    """Return what writes the stream of a journal."""
    body = msgspec.json.decode(head.keeping.body, type=native_bodies.GenerateBody)
    rids = [name or "" for name in head.names]
    tokenizer = serving.frontdoor.prompter.tokenizer
    call = _read(serving, body, "")
    stream = native_answers.NativeStream(call, generation.completions, rids, tokenizer)
    begun_s = time.monotonic() - max(0.0, time.time() - head.keeping.created)
    return _writer(stream, begun_s)


def _writer(
    stream: native_answers.NativeStream, begun_s: float, over: Callable[[], None] | None = None
) -> Writer:
    def elapsed_s() -> float:
        return time.monotonic() - begun_s

    def write(deltas: Sequence[Delta]) -> bytes:
        return b"".join([stream.write(delta, elapsed_s) for delta in deltas])

    def last() -> bytes:
        if over is not None:
            over()
        return DONE

    return Writer(write, last, fail_openai, is_cumulative=True)
