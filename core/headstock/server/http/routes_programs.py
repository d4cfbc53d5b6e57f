"""``/v1/programs``: a whole program in one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from headstock.config.schema import ServerSettings
from headstock.errors import RequestError
from headstock.programs import Event, Limits, Outcome, check, run_program
from headstock.programs.events import ProgramEnd
from headstock.server.http.answers import json_answer
from headstock.server.http.bodies import read_body
from headstock.server.http.context import Serving, call_of, now, payer_of, tenant_of
from headstock.server.http.schema import body_of
from headstock.server.http.streaming import DONE, Receive, Send, error_event
from headstock.server.program_model import DoorModel
from headstock.server.protocols.events import event
from headstock.server.protocols.parameters import check_model, join_namespace
from headstock.server.protocols.programs import (
    ProgramAnswer,
    ProgramBody,
    answer,
    new_id,
    usage_of,
)

PING_S = 15.0
_PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def limits_of(settings: ServerSettings) -> Limits:
    """Return how large a program may be."""
    return Limits(
        max_steps=settings.max_program_steps,
        max_depth=settings.max_program_depth,
        max_tokens=settings.max_program_tokens,
    )


def make_router(serving: Serving) -> APIRouter:
    """Return the route."""
    router = APIRouter(prefix="/v1", tags=["programs"])
    frontdoor = serving.frontdoor
    limits = limits_of(serving.settings.server)

    @router.post("/programs", openapi_extra=body_of(ProgramBody, ProgramAnswer))
    async def run(request: Request) -> Response:
        """Run a program: gens, selects, forks, joins and conditions, without round trips."""
        body = await read_body(request, ProgramBody, serving.max_body_bytes)
        card = frontdoor.adapters.card_of(body.model)
        check_model(body.model, card)
        check(body, limits)
        namespace = join_namespace(tenant_of(request), body.cache_salt)
        model = DoorModel(
            frontdoor,
            namespace=namespace,
            priority=body.priority,
            adapter=card.adapter,
            payer=payer_of(request),
            call=call_of(request),
        )
        program_id = new_id()
        if body.stream:
            events: asyncio.Queue[Event] = asyncio.Queue()
            task = asyncio.create_task(run_program(body, model, events.put_nowait))
            return await ProgramStream(task, events, program_id).begun(request.receive)
        task = asyncio.create_task(run_program(body, model))
        async with _Leaving(request.receive, task.cancel):
            try:
                outcome = await task
            except asyncio.CancelledError:
                return Response(status_code=400)  # the client is gone
            finally:
                task.cancel()
        return json_answer(answer(outcome, program_id, card.name, now()))

    return router


class _Leaving:
    """Calls back when the client goes away; a context for as long as it matters."""

    def __init__(self, receive: Receive, leave: Callable[[], object]) -> None:
        self._receive = receive
        self._leave = leave

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()


class ProgramStream(Response):
    """Streams what a running program tells.

    Args:
        task: The program.
        events: What it tells.
        program_id: For the last event.
    """

    def __init__(
        self, task: asyncio.Task[Outcome], events: asyncio.Queue[Event], program_id: str
    ) -> None:
        super().__init__()
        self._task = task
        self._events = events
        self._id = program_id

    async def begun(self, receive: Receive) -> ProgramStream:
        """Wait until there is something to tell; errors before that are plain HTTP ones.

        Raises:
            RequestError: A step cannot be served.
        """
        first = asyncio.create_task(self._events.get())
        try:
            async with _Leaving(receive, self._task.cancel):
                await asyncio.wait([self._task, first], return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._task.cancel()
            raise
        if first.done():
            self._first: list[Event] = [first.result()]
        else:
            first.cancel()
            self._first = []
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error
        return self

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Send the whole stream."""
        try:
            async with _Leaving(receive, self._task.cancel):
                await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                body = b"".join(map(event, self._first))
                while True:
                    if body:
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                    if self._task.done() and self._events.empty():
                        break
                    body = await self._next()
                await send({"type": "http.response.body", "body": self._last()})
        finally:
            self._task.cancel()

    async def _next(self) -> bytes:
        """Wait for events and return all there are; a comment after a long silence."""
        if self._events.empty():
            getting = asyncio.create_task(self._events.get())
            await asyncio.wait(
                [getting, self._task], timeout=PING_S, return_when=asyncio.FIRST_COMPLETED
            )
            if getting.done():
                found = [getting.result()]
            else:
                getting.cancel()
                return b"" if self._task.done() else _PING
        else:
            found = []
        while not self._events.empty():
            found.append(self._events.get_nowait())
        return b"".join(map(event, found))

    def _last(self) -> bytes:
        if self._task.cancelled():
            return DONE
        error = self._task.exception()
        if isinstance(error, RequestError):
            return error_event(error) + DONE
        if error is not None:
            raise error
        return event(ProgramEnd(self._id, usage_of(self._task.result().done))) + DONE
