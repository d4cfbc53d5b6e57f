"""Streams whose events have ids, by which a client that lost its connection resumes them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from headstock.errors import RequestError
from headstock.server.completion import Delta
from headstock.server.frontdoor import Frontdoor
from headstock.server.generation import Generation, merge
from headstock.server.http.bodies import off_loop
from headstock.server.http.streaming import EventStream, Watch, Writer
from headstock.server.journal import Head

HEADER = "last-event-id"
FIELD = "Last-Event-ID"
INLINE_DELTAS = 500
"""So many deltas are written again on the spot; more of them in a thread."""
_ID = re.compile(r"([A-Za-z0-9_-]{1,128})/(\d{1,9})")


class Numbered:
    """Gives events ids: the name of their stream and their number in it.

    Args:
        writer: Writes them.
        name: Of the stream.
        seen: Number of the last event that the client has; -1: it has none.
    """

    def __init__(self, writer: Writer, name: str, seen: int = -1) -> None:
        self._writer = writer
        self._name = name.encode()
        self._next = 0
        self._seen = seen

    def wrap(self) -> Writer:
        """Return what writes the events with ids; ends by an error have none."""
        return replace(self._writer, write=self.write, last=self.last)

    def write(self, deltas: Sequence[Delta]) -> bytes:
        """Return the events of ``deltas``, without those that the client has."""
        return self._tagged(self._writer.write(deltas))

    def last(self) -> bytes:
        """Return the events after the last delta."""
        return self._tagged(self._writer.last())

    def again(self, deltas: Sequence[Delta]) -> bytes:
        """Return the events of all ``deltas`` so far, without those that the client has.

        Those it has are not all written where one tells the same as all.
        """
        if self._writer.is_cumulative:
            had = min(self._seen + 1, len(deltas))
            self._writer.write(merge(deltas[:had]))
            self._next, deltas = had, deltas[had:]
        return self.write(deltas)

    def _tagged(self, body: bytes) -> bytes:
        numbered: list[bytes] = []
        for event in body.split(b"\n\n")[:-1]:
            if self._next > self._seen:
                numbered.append(b"id: %b/%d\n%b\n\n" % (self._name, self._next, event))
            self._next += 1
        return b"".join(numbered)


def read_event(given: str) -> tuple[str, int]:
    """Return which stream a Last-Event-ID names, and the last event of it that the client has.

    Raises:
        RequestError: It is none of ours.
    """
    found = _ID.fullmatch(given)
    if found is None:
        raise RequestError(
            f"{FIELD} is {given[:64]!r}.",
            remedy="Send the id of the last event as it came, or leave the header out.",
            field=FIELD,
        )
    return found[1], int(found[2])


async def resume(
    frontdoor: Frontdoor,
    request: Request,
    *,
    route: str,
    owner: str,
    name: str,
    seen: int,
    make: Callable[[Head, Generation], Writer],
) -> Response:
    """Go on with a stream after the last event that its client has.

    Args:
        frontdoor: Whose.
        request: Of the client that comes back.
        route: Which protocol writes the stream.
        owner: Whose it must be.
        name: Of the stream.
        seen: Number of the last event that the client has; -1: none.
        make: From the beginning of the journal and the completions, how events are written.

    Raises:
        RequestError: There is no such stream any more.
    """
    journal = frontdoor.journals.find(owner, name, route)
    retelling, deltas = await frontdoor.journals.retell(journal)
    numbered = Generation(retelling.completions, is_streamed=True, abort=lambda _: None)
    head = journal.head
    writer = Numbered(await off_loop(len(head.keeping.body), make, head, numbered), name, seen)
    shown = [d for d in deltas if d.end is None or d.end.reason.kind != "error"]
    if len(shown) < INLINE_DELTAS:
        lead = writer.again(shown)
    else:
        lead = await asyncio.to_thread(writer.again, shown)
    generation = frontdoor.resumption.reattach(journal, retelling, deltas)
    watch = Watch(request, generation).start()
    return EventStream(generation, generation.take(), watch, writer.wrap(), lead)
