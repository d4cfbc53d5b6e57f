"""``/v1/responses``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.completion import Completion, Delta
from headstock.server.errors import message_of
from headstock.server.generation import Generation
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, owner_of, payer_of, tenant_of
from headstock.server.http.routes_openai import tokenizer_of
from headstock.server.http.schema import body_of
from headstock.server.http.streaming import Writer
from headstock.server.journal import Head, Journal, Keeping
from headstock.server.protocols import response_answers, responses
from headstock.server.protocols.events import named_event
from headstock.server.protocols.messages import ChatMessage
from headstock.server.protocols.response_store import ResponseStore, unknown_response
from headstock.server.speech import Answer

_ROUTE = "responses"
_HEAD_BYTES = 64 * 1024
"""What the beginning of a journal needs, beside what was sent."""
_decode_messages = msgspec.json.Decoder(list[ChatMessage]).decode
log = logging.getLogger(__name__)


def make_router(serving: Serving) -> APIRouter:
    """Return the routes."""
    router = APIRouter(prefix="/v1/responses", tags=["responses"])
    made = _Responses(serving)
    serving.frontdoor.journals.when_over(_ROUTE, made.over)

    @router.post("", openapi_extra=body_of(responses.ResponsesBody))
    async def respond(request: Request) -> Response:
        """Answer, in items."""
        return await made.respond(request)

    @router.get("/{response_id}")
    async def retrieve(
        request: Request,
        response_id: str,
        stream: bool = False,
        starting_after: Annotated[int | None, Query(ge=0, le=10**9)] = None,
    ) -> Response:
        """Return a response that was asked to be kept, whole or as its events."""
        if stream:
            seen = -1 if starting_after is None else starting_after
            return await serving.resumed_at(request, _ROUTE, response_id, seen, made.written_again)
        return json_answer(await made.find(owner_of(request), response_id))

    @router.post("/{response_id}/cancel")
    async def cancel(request: Request, response_id: str) -> Response:
        """End a response that is still being made."""
        await made.end(owner_of(request), response_id)
        return json_answer(await made.find(owner_of(request), response_id))

    @router.delete("/{response_id}")
    async def delete(request: Request, response_id: str) -> Response:
        """Forget a response, and end it if it is still being made."""
        await made.end(owner_of(request), response_id)
        made.store.forget(owner_of(request), response_id)
        return json_answer({"id": response_id, "object": "response", "deleted": True})

    return router


class _Responses:
    """Responses as they are made, kept and found again."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._frontdoor = serving.frontdoor
        self.store = ResponseStore(serving.store)

    async def respond(self, request: Request) -> Response:
        """Answer a request."""
        serving = self._serving
        if (resumed := await serving.resumed(request, _ROUTE, self.written_again)) is not None:
            return resumed
        body = await read_body(request, responses.ResponsesBody, serving.max_body_bytes)
        call = self._read(body, owner_of(request), tenant_of(request))
        keeping = self._keeping(call, owner_of(request))
        if body.stream:
            return await serving.stream(
                request,
                [call.request],
                lambda generation: self._writer(call, generation, None if keeping else request),
                keeping,
            )
        if body.background:
            return await self._begin(request, call, keeping)
        generation = await serving.whole(request, [call.request], keeping)
        answer, response = self._whole(call, generation.completions[0])
        if body.is_stored and keeping is None:
            self.store.keep(owner_of(request), response_answers.stored_of(call, response, answer))
        return json_answer(response)

    async def find(self, owner: str, response_id: str) -> dict[str, Any]:
        """Return a response, as far as it has come.

        Raises:
            RequestError: There is none of this name.
        """
        stored = self.store.peek(owner, response_id)
        if stored is not None:
            return stored.response
        self._frontdoor.journals.check_revived()
        journal = self._running(owner, response_id)
        if journal is None:
            raise unknown_response(response_id)
        retelling, _ = await self._frontdoor.journals.retell(journal)
        return self._whole(self._call_of(journal.head), retelling.completions[0])[1]

    async def end(self, owner: str, response_id: str) -> None:
        """End a response that is still being made."""
        journal = self._running(owner, response_id)
        if journal is not None:
            self._frontdoor.journals.end(journal)
            await asyncio.sleep(0)  # it is stored by then

    def over(self, head: Head, completions: Sequence[Completion]) -> None:
        """Store a response that has ended, if it was asked to be."""
        keeping = head.keeping
        if not keeping.is_stored:
            return
        try:
            call = self._call_of(head)
            answer, response = self._whole(call, completions[0])
            self.store.keep(keeping.owner, response_answers.stored_of(call, response, answer))
        except RequestError as error:
            log.error("%s cannot be stored: %s", keeping.name, error.problem)

    def written_again(self, head: Head, generation: Generation) -> Writer:
        """Return what writes the stream of a journal."""
        return self._writer(self._call_of(head), generation, None)

    async def _begin(
        self, request: Request, call: responses.ResponsesCall, keeping: Keeping | None
    ) -> Response:
        """Have a response made without a client, and return it as it begins."""
        assert keeping is not None, "a response in the background has no journal"
        generation = await self._frontdoor.generate(
            [call.request],
            is_streamed=False,
            owner=tenant_of(request),
            payer=payer_of(request),
            keeping=keeping,
        )
        response = self._whole(call, generation.completions[0])[1]
        generation.abort()
        return json_answer(response)

    def _running(self, owner: str, response_id: str) -> Journal | None:
        journal = self._frontdoor.journals.peek(owner, response_id)
        is_ours = journal is not None and journal.head.keeping.route == _ROUTE
        return journal if is_ours and journal is not None and journal.num_open else None

    def _read(
        self, body: responses.ResponsesBody, owner: str, tenant: str
    ) -> responses.ResponsesCall:
        earlier: list[ChatMessage] = []
        if body.previous_response_id is not None:
            field = "previous_response_id"
            earlier = self.store.find(owner, body.previous_response_id, field).messages
        card = self._frontdoor.adapters.card_of(body.model)
        return responses.read_response(
            body, card, self._frontdoor.prompter.dialect, earlier, tenant
        )

    def _call_of(self, head: Head) -> responses.ResponsesCall:
        """Return what was asked of a response that another reader, or process, began."""
        keeping = head.keeping
        body = msgspec.json.decode(keeping.body, type=responses.ResponsesBody)
        card = self._frontdoor.adapters.card_of(body.model)
        call = responses.read_response(body, card, self._frontdoor.prompter.dialect)
        return msgspec.structs.replace(
            call,
            id=keeping.call_id,
            created=keeping.created,
            messages=_decode_messages(keeping.extra),
        )

    def _keeping(self, call: responses.ResponsesCall, owner: str) -> Keeping | None:
        """Return what is written down of a call; None: nothing is.

        What is made in the background always is; with a folder all that is streamed or stored.
        """
        body = call.body
        has_folder = self._frontdoor.journals.is_durable
        if not (body.background or (has_folder and (body.stream or body.is_stored))):
            return None
        keeping = Keeping(
            route=_ROUTE,
            name=call.id,
            owner=owner,
            body=msgspec.json.encode(body),
            call_id=call.id,
            created=call.created,
            extra=msgspec.json.encode(call.messages),
            is_stored=body.is_stored,
        )
        if body.is_stored:
            num_bytes = len(keeping.body) + len(keeping.extra) + _HEAD_BYTES
            self.store.make_room(owner, num_bytes)
        return keeping

    def _whole(
        self, call: responses.ResponsesCall, completion: Completion
    ) -> tuple[Answer, dict[str, Any]]:
        """Return the answer as far as it has come, and the response with it."""
        answer = Answer.whole(completion, call.speech, tokenizer_of(self._serving))
        items = response_answers.items_of(call, answer)
        return answer, response_answers.response_of(call, completion, items, answer)

    def _writer(
        self, call: responses.ResponsesCall, generation: Generation, keeper: Request | None
    ) -> Writer:
        """Return what writes a stream.

        Args:
            call: What was asked.
            generation: What is written.
            keeper: Owner of what is stored at its end; None: nothing is, or it is stored elsewhere.
        """
        completion = generation.completions[0]
        stream = response_answers.ResponseStream(call, completion, tokenizer_of(self._serving))

        def write(deltas: Sequence[Delta]) -> bytes:
            return stream.write(deltas)

        def last() -> bytes:
            if keeper is not None and call.body.is_stored:
                kept = response_answers.stored_of(call, stream.response, stream.answer)
                self.store.keep(owner_of(keeper), kept)
            return b""

        return Writer(write, last, _fail)


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
