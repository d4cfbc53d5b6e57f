"""The journals of all calls that can be resumed: begun, read again, revived, forgotten.

What is written down reaches the store before it is sent to the client. A client that comes back
finds the call while it runs and for some time after; a call without a client is ended after that
time, unless it was asked to be stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import msgspec

from headstock.errors import RequestError
from headstock.requests import FinishReason
from headstock.server.completion import Completion, Delta
from headstock.server.errors import BusyError, error_of
from headstock.server.generation import Generation
from headstock.server.journal import (
    KIND,
    Head,
    Journal,
    Keeping,
    Retelling,
    decode_head,
    encode_head,
)
from headstock.server.store import Store
from headstock.server.store.base import full
from headstock.text import Tokenizer

MAX_REVIVALS = 3
"""Processes that die without a token of a call before it is ended as the one they die of."""
MAX_HEAD_BYTES = 16 * 1024**2
"""Of what was asked, images included: more would hold up the event loop while it is written."""
LOOK_EVERY_S = 0.5
INLINE_PARTS = 500
"""So many parts are read again on the spot; more of them in a thread."""
log = logging.getLogger(__name__)
OnOver = Callable[[Head, Sequence[Completion]], None]
Fail = Callable[[Sequence[Completion], RequestError], None]


class Journals:
    """Knows the journals of this process, and those that an earlier one left in the store.

    Args:
        store: Where they are.
        tokenizer: For making completions again.
        fail: Ends what still runs of some completions.
        resume_s: How long a call without a reader goes on, and is kept after its end. Seconds.
        is_durable: Whether the store outlives this process.
    """

    def __init__(
        self,
        store: Store,
        tokenizer: Tokenizer | None,
        fail: Fail,
        *,
        resume_s: float,
        is_durable: bool,
    ) -> None:
        self.is_durable = is_durable
        self._store = store
        self._tokenizer = tokenizer
        self._fail = fail
        self._resume_s = resume_s
        self._journals: dict[tuple[str, str], Journal] = {}
        self._readers: dict[tuple[str, str], Generation] = {}
        self._on_over: dict[str, OnOver] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_revived = not is_durable
        self._is_failing = False

    def when_over(self, route: str, call: OnOver) -> None:
        """Call ``call`` with each call of a route that has ended."""
        self._on_over[route] = call

    def begin(
        self,
        keeping: Keeping,
        completions: Sequence[Completion],
        *,
        model: str,
        weight_version: str,
        payer: str,
        tenant: str,
        names: list[str | None],
        adapters: list[str],
    ) -> Journal | None:
        """Begin a journal; None: the store does not take it, and the call need not be stored.

        Raises:
            RequestError: The store does not take it, and the call must be stored.
        """
        head = Head(
            keeping=keeping,
            model=model,
            weight_version=weight_version,
            payer=payer,
            tenant=tenant,
            names=names,
            adapters=adapters,
            submits=[completion.submit for completion in completions],
        )
        try:
            data = encode_head(head)
            if len(data) > MAX_HEAD_BYTES:
                raise full(
                    f"What is asked takes {len(data)} bytes; of a call that is stored or can be"
                    f" resumed at most {MAX_HEAD_BYTES} are kept.",
                    "Send smaller images or shorter prompts, or do without store.",
                )
            self._store.put(KIND, keeping.owner, keeping.name, data)
        except RequestError as error:
            if keeping.is_stored:
                raise
            if not self._is_failing:
                log.warning("Streams cannot be resumed now: %s", error.problem)
            self._is_failing = True
            return None
        self._is_failing = False
        return self._know(head, completions)

    def flush(self) -> None:
        """Write down what was taken, before it is sent to the client."""
        for entry in self._store.flush():
            journal = self._journals.get((entry.owner, entry.name))
            if entry.kind == KIND and journal is not None:
                journal.is_lost = True
                log.warning("%s cannot be resumed any more: it could not be stored", entry.name)

    def find(self, owner: str, name: str, route: str) -> Journal:
        """Return a call's journal.

        Raises:
            RequestError: There is none, or of another route.
            BusyError: What an earlier process left is not taken up yet.
        """
        self.check_revived()
        journal = self._journals.get((owner, name))
        if journal is None or journal.is_lost or journal.head.keeping.route != route:
            raise RequestError(
                f"There is no stream {name[:128]!r} here to continue.",
                remedy="Send the request anew: a stream is kept for"
                f" {self._resume_s:.0f} s after its end, or after its client left.",
                field="Last-Event-ID",
                code="not_found",
            )
        return journal

    def check_revived(self) -> None:
        """Refuse while what an earlier process left is not taken up yet.

        Raises:
            BusyError: It is not.
        """
        if not self._is_revived:
            raise BusyError("The server is starting.", code="engine_unavailable", retry_after_s=2.0)

    def peek(self, owner: str, name: str) -> Journal | None:
        """Return a call's journal; None: there is none."""
        return self._journals.get((owner, name))

    # Readers

    def attach(self, journal: Journal, generation: Generation) -> None:
        """Give a journal a reader; one that it had ends."""
        self._release(journal, _taken_over())
        self._readers[journal.key] = generation
        journal.deadline_s = self._deadline() if journal.num_open == 0 else None

    def left(
        self, journal: Journal, generation: Generation, error: RequestError | None = None
    ) -> None:
        """Take note that a reader is gone: the call goes on, for a while or to its end.

        Args:
            journal: Of the call.
            generation: The reader.
            error: Why it is sent away; None: it went.
        """
        if self._readers.get(journal.key) is not generation:
            return
        self._release(journal, error or _aborted())
        if journal.head.keeping.is_stored or journal.num_open == 0:
            return
        if journal.client_knows and not journal.is_lost:
            journal.deadline_s = self._deadline()
        else:
            self.end(journal)

    def has_reader(self, journal: Journal) -> bool:
        """Whether a client waits for it."""
        return journal.key in self._readers

    def end(self, journal: Journal) -> None:
        """End what still runs of a call."""
        self._fail(journal.completions, _aborted())

    def forget(self, journal: Journal) -> None:
        """Forget a call that is over."""
        self._journals.pop(journal.key, None)
        self._readers.pop(journal.key, None)
        self._store.drop(KIND, *journal.key)

    async def retell(self, journal: Journal) -> tuple[Retelling, list[Delta]]:
        """Make a call's completions again, as they are now, and all that they brought.

        Raises:
            RequestError: The journal is damaged.
        """
        retelling = Retelling(journal.head, self._tokenizer)
        deltas = await self._feed(retelling, journal.parts())
        return retelling, deltas

    async def _feed(self, retelling: Retelling, parts: list[bytes]) -> list[Delta]:
        if len(parts) < INLINE_PARTS:
            return retelling.feed(parts)
        return await asyncio.to_thread(retelling.feed, parts)

    def _release(self, journal: Journal, error: RequestError) -> None:
        reader = self._readers.pop(journal.key, None)
        if reader is not None:
            reader.detach(error)

    # Ends

    def over(self, journal: Journal) -> None:
        """Take note that all completions of a call have ended."""
        journal.deadline_s = self._deadline()
        call = self._on_over.get(journal.head.keeping.route)
        completions, journal.completions = journal.completions, []
        if call is not None:
            # Not here, amid a delivery: what goes wrong there would end it.
            asyncio.get_running_loop().call_soon(call, journal.head, completions)

    def _deadline(self) -> float:
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._timer = loop.call_later(LOOK_EVERY_S, self._look)
        return loop.time() + self._resume_s

    def _look(self) -> None:
        """End and forget calls whose clients did not come back; again later, if there are more."""
        loop = asyncio.get_running_loop()
        self._timer = None
        now_s, has_more = loop.time(), False
        for journal in list(self._journals.values()):
            if journal.deadline_s is None:
                continue
            if journal.deadline_s > now_s:
                has_more = True
                continue
            if journal.num_open:
                self.end(journal)
            self.forget(journal)
        if has_more and self._timer is None:
            self._timer = loop.call_later(LOOK_EVERY_S, self._look)

    # What an earlier process left

    async def revive(self, resume: Callable[[Journal, Retelling], None]) -> int:
        """Take up what an earlier process left; return how many calls go on.

        Args:
            resume: Goes on with a call whose completions were made again.
        """
        count = 0
        for entry in self._store.entries(KIND):
            if (entry.owner, entry.name) in self._journals:
                continue
            found = await self._read(entry.owner, entry.name)
            if found is None:
                self._store.drop(KIND, entry.owner, entry.name)
                continue
            head, retelling = found
            journal = self._know(head, retelling.completions)
            if journal.num_open == 0:
                self.over(journal)
                continue
            journal.client_knows = True
            if not head.keeping.is_stored:
                journal.deadline_s = self._deadline()
            if retelling.num_revivals >= MAX_REVIVALS:
                self._close(journal, _fatal())
                continue
            journal.revived()
            try:
                resume(journal, retelling)
                count += 1
            except RequestError as error:
                self._close(journal, error)
        self.flush()
        self._is_revived = True
        return count

    def _close(self, journal: Journal, error: RequestError) -> None:
        """End a call that this process does not go on with."""
        for completion in journal.completions:
            if completion.end is None:
                completion.fail(error)
                journal.failed(completion, error)
        self.over(journal)

    async def _read(self, owner: str, name: str) -> tuple[Head, Retelling] | None:
        parts = self._store.parts(KIND, owner, name)
        try:
            head = decode_head(parts[0])
            retelling = Retelling(head, self._tokenizer)
            await self._feed(retelling, parts)
        except (msgspec.DecodeError, RequestError, IndexError) as error:
            log.error("%s cannot continue: %s", name, error)
            return None
        return head, retelling

    def _know(self, head: Head, completions: Sequence[Completion]) -> Journal:
        num_open = sum(completion.end is None for completion in completions)
        journal = Journal(self._store, head, num_open)
        journal.completions = list(completions)
        self._journals[journal.key] = journal
        return journal


def _aborted() -> RequestError:
    return error_of(FinishReason(kind="error", message="Aborted.", code="aborted"))


def _taken_over() -> RequestError:
    return RequestError(
        "Another client has resumed this stream.",
        remedy="Read it from one place.",
        code="stream_taken",
    )


def _fatal() -> RequestError:
    return RequestError(
        f"The server died {MAX_REVIVALS} times while it served this request.",
        remedy="Report it; the server's log has the reason.",
        code="computation_failed",
    )
