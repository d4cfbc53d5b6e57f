"""What every route needs, handed over when the application is made."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from headstock.config.schema import ServeSettings
from headstock.errors import RequestError
from headstock.observe.metrics import Metrics
from headstock.server.completion import Delta
from headstock.server.frontdoor import Frontdoor
from headstock.server.generation import Generation
from headstock.server.http.resuming import FIELD, HEADER, Numbered, read_event, resume
from headstock.server.http.streaming import EventStream, Watch, Writer
from headstock.server.journal import Head, Keeping
from headstock.server.keys import Caller
from headstock.server.payers import Payer
from headstock.server.records import Call
from headstock.server.request import GenerateRequest
from headstock.server.store import StateFolder, Store


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts that the routes work with.

    Attributes:
        store: What callers asked to keep: in ``state``, or in memory.
        state: The folder of --state-dir; None: there is none.
    """

    frontdoor: Frontdoor
    settings: ServeSettings
    metrics: Metrics
    started_at: float
    store: Store
    state: StateFolder | None = None

    @property
    def max_body_bytes(self) -> int:
        """Largest body. Bytes."""
        return self.settings.server.max_body_bytes

    async def whole(
        self,
        request: Request,
        requests: list[GenerateRequest],
        keeping: Keeping | None = None,
    ) -> Generation:
        """Generate to the end, or until the client leaves.

        Args:
            request: Whose client is watched.
            requests: What to generate; emptied once it is sent, so that no prompt is kept beside
                its tokens while it waits.
            keeping: What is to be written down of the call; None: nothing.

        Raises:
            RequestError: A request is at fault, or could not be served.
        """
        generation = await self.frontdoor.generate(
            requests,
            is_streamed=False,
            owner=tenant_of(request),
            payer=payer_of(request),
            keeping=keeping,
            call=call_of(request),
        )
        requests.clear()
        async with Watch(request, generation):
            await generation.finished()
        return generation

    async def stream(
        self,
        request: Request,
        requests: list[GenerateRequest],
        make: Callable[[Generation], Writer],
        keeping: Keeping | None = None,
    ) -> Response:
        """Stream a generation; errors before its first token are plain HTTP ones.

        Args:
            request: Whose client is watched.
            requests: What to generate; emptied once it is sent.
            make: From the generation, how its events are written.
            keeping: What is to be written down of the call, so that it can be resumed; None:
                nothing.

        Raises:
            RequestError: A request is at fault, or could not be served.
        """
        generation = await self.frontdoor.generate(
            requests,
            is_streamed=True,
            owner=tenant_of(request),
            payer=payer_of(request),
            keeping=keeping,
            call=call_of(request),
        )
        requests.clear()
        watch = Watch(request, generation).start()
        try:
            first: list[Delta] = []
            while not first and not generation.is_over:
                first = await generation.deltas()
            if generation.error is not None:
                raise generation.error
        except BaseException:
            watch.stop()
            raise
        writer = make(generation)
        journals = self.frontdoor.journals
        journal = None if keeping is None else journals.peek(keeping.owner, keeping.name)
        if journal is not None and keeping is not None:
            journal.client_knows = True
            writer = Numbered(writer, keeping.name).wrap()
        return EventStream(generation, first, watch, writer)

    async def resumed(
        self, request: Request, route: str, make: Callable[[Head, Generation], Writer]
    ) -> Response | None:
        """Go on with the stream that a client names by Last-Event-ID; None: it names none.

        Args:
            request: Of the client that comes back.
            route: Which protocol writes the stream.
            make: From the beginning of the journal and the completions, how events are written.

        Raises:
            RequestError: There is no such stream any more, or streams cannot be resumed.
        """
        given = request.headers.get(HEADER)
        if given is None:
            return None
        named = read_event(given)
        if not self.frontdoor.journals.is_durable:
            raise RequestError(
                f"{FIELD} is sent; this server does not keep streams that end early.",
                remedy="Start it with --state-dir, or send the request without the header.",
                field=FIELD,
                code="not_supported",
            )
        return await self.resumed_at(request, route, *named, make)

    async def resumed_at(
        self,
        request: Request,
        route: str,
        name: str,
        seen: int,
        make: Callable[[Head, Generation], Writer],
    ) -> Response:
        """Go on with a stream after its event ``seen``; -1: from its beginning.

        Raises:
            RequestError: There is no such stream any more.
        """
        return await resume(
            self.frontdoor,
            request,
            route=route,
            owner=owner_of(request),
            name=name,
            seen=seen,
            make=make,
        )

    def keeping(
        self, request: Request, route: str, body: msgspec.Struct, call_id: str, created: int
    ) -> Keeping | None:
        """Return what is written down of a streamed call; None: nothing is.

        Args:
            request: Whose it is.
            route: Which protocol writes the stream.
            body: What was asked.
            call_id: Of the answer.
            created: Seconds since 1970.
        """
        if not self.frontdoor.journals.is_durable:
            return None
        return Keeping(
            route=route,
            name=uuid.uuid4().hex,
            owner=owner_of(request),
            body=msgspec.json.encode(body),
            call_id=call_id,
            created=created,
        )


def now() -> int:
    """Return the time. Seconds since 1970."""
    return int(time.time())


def clock() -> float:
    """Return the event loop's clock. Seconds."""
    return asyncio.get_running_loop().time()


def tenant_of(request: Request) -> str:
    """Return the prefix of the cache namespaces of the caller; "" when there is one key only."""
    return caller_of(request).tenant


def payer_of(request: Request) -> Payer:
    """Return the payer that a request counts against."""
    return caller_of(request).payer


def owner_of(request: Request) -> str:
    """Return whose what a request stores is."""
    return caller_of(request).owner


def call_of(request: Request) -> Call:
    """Return the call that a request's generations belong to."""
    scope = request.scope
    return Call(
        id=scope["headstock.request_id"],
        name=scope["headstock.shown_id"],
        owner=tenant_of(request),
        route=getattr(scope.get("route"), "path", ""),
        traceparent=request.headers.get("traceparent", ""),
    )


def caller_of(request: Request) -> Caller:
    """Return who sends a request."""
    return request.scope["headstock.caller"]
