"""What every route needs, handed over when the application is made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from headstock.config.schema import ServeSettings
from headstock.observe.metrics import Metrics
from headstock.server.completion import Delta
from headstock.server.frontdoor import Frontdoor
from headstock.server.generation import Generation
from headstock.server.http.streaming import EventStream, Watch
from headstock.server.keys import Caller
from headstock.server.request import GenerateRequest


@dataclass(frozen=True, slots=True)
class Serving:
    """The parts that the routes work with."""

    frontdoor: Frontdoor
    settings: ServeSettings
    metrics: Metrics
    started_at: float

    @property
    def max_body_bytes(self) -> int:
        """Largest body. Bytes."""
        return self.settings.server.max_body_bytes

    async def whole(self, request: Request, requests: Sequence[GenerateRequest]) -> Generation:
        """Generate to the end, or until the client leaves.

        Raises:
            RequestError: A request is at fault, or could not be served.
        """
        generation = await self.frontdoor.generate(
            requests, is_streamed=False, owner=tenant_of(request)
        )
        async with Watch(request.receive, generation):
            await generation.finished()
        return generation

    async def stream(
        self, request: Request, requests: Sequence[GenerateRequest], make: Writers
    ) -> Response:
        """Stream a generation; errors before its first token are plain HTTP ones.

        Args:
            request: Whose client is watched.
            requests: What to generate.
            make: From the generation, how its events are written.

        Raises:
            RequestError: A request is at fault, or could not be served.
        """
        generation = await self.frontdoor.generate(
            requests, is_streamed=True, owner=tenant_of(request)
        )
        watch = Watch(request.receive, generation).start()
        try:
            first: list[Delta] = []
            while not first and not generation.is_over:
                first = await generation.deltas()
            if generation.error is not None:
                raise generation.error
        except BaseException:
            watch.stop()
            raise
        write, last = make(generation)
        return EventStream(generation, first, watch, write, last)


Writers = Callable[[Generation], tuple[Callable[[Sequence[Delta]], bytes], Callable[[], bytes]]]
"""From a generation: deltas to bytes, and the bytes before the end."""


def now() -> int:
    """Return the time. Seconds since 1970."""
    return int(time.time())


def clock() -> float:
    """Return the event loop's clock. Seconds."""
    return asyncio.get_running_loop().time()


def tenant_of(request: Request) -> str:
    """Return the prefix of the cache namespaces of whoever asks; "" when there is one key only."""
    return caller_of(request).tenant


def caller_of(request: Request) -> Caller:
    """Return who sends a request."""
    return request.scope["headstock.caller"]
