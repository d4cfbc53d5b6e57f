"""Works batches off, one at a time, in what room other requests leave."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from headstock.errors import RequestError
from headstock.server.batches import OVER, Batch, BatchBook, Counts, Line, Outcome, read_lines
from headstock.server.errors import message_of
from headstock.server.files import FileBook
from headstock.server.keys import Caller

LOWEST_PRIORITY = -(2**31)
POLL_S = 0.05
"""How often it is looked whether there is room. Seconds."""
AGAIN_S = 1.0
"""How long a line waits that could not be served. Seconds."""
_BUSY = (429, 503)
_WITHOUT_PRIORITY = frozenset({"/v1/responses"})
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """What the server answers a line."""

    status: int
    body: bytes
    request_id: str


@dataclass(slots=True)
class _Work:
    """A batch under way.

    Attributes:
        done: The answer of each line; None: it has none yet.
    """

    owner: str
    caller: Caller
    batch: Batch
    lines: Sequence[Line]
    done: list[Outcome | None]
    completed: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        for outcome in self.done:
            self._count(outcome)

    @property
    def counts(self) -> Counts:
        """Lines by how they ended."""
        return Counts(len(self.lines), self.completed, self.failed)

    def put(self, number: int, outcome: Outcome) -> None:
        """Take the answer of a line."""
        self.done[number] = outcome
        self._count(outcome)

    def _count(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            self.failed += outcome.is_error
            self.completed += not outcome.is_error


Ask = Callable[[Caller, str, bytes], Awaitable[Answered]]


class BatchRunner:
    """Answers the lines of batches, oldest batch first.

    A line is sent only when no request waits, and only so many at once that half of the engine's
    places stay free. Answers are kept as they come: after a restart only lines without one are
    sent again.

    Args:
        batches: What is to be done.
        files: Where lines come from and answers go.
        ask: Asks the server itself: whose request, the route, the body.
        caller_of: From an owner, who that is; None: its key is gone.
        num_free: From how many lines are under way, how many may be.
    """

    def __init__(
        self,
        batches: BatchBook,
        files: FileBook,
        ask: Ask,
        caller_of: Callable[[str], Caller | None],
        num_free: Callable[[int], int],
    ) -> None:
        self._batches = batches
        self._files = files
        self._ask = ask
        self._caller_of = caller_of
        self._num_free = num_free
        self._news = asyncio.Event()
        self._cancelled: set[str] = set()
        self._num_asked = 0

    def wake(self) -> None:
        """Look for batches now."""
        self._news.set()

    def cancel(self, owner: str, batch: Batch) -> Batch:
        """End a batch; what it has by then is kept.

        Raises:
            RequestError: It is over.
        """
        if batch.status in OVER:
            raise RequestError(
                f"The batch {batch.id!r} is {batch.status}.", remedy="Leave it.", field="status"
            )
        if batch.status != "cancelling":
            batch = batch.turned("cancelling")
            self._batches.keep(owner, batch)
        self._cancelled.add(batch.id)
        self.wake()
        return batch

    async def run(self) -> None:
        """Work batches off until cancelled."""
        while True:
            waiting = self._batches.unfinished()
            if not waiting:
                self._news.clear()
                await self._news.wait()
                continue
            owner, batch = waiting[0]
            try:
                await self._work(owner, batch)
            except RequestError as error:
                self._fail(owner, batch.id, error)
            except Exception:
                # The boundary of a batch: whatever is wrong with it, the others continue.
                log.exception("%s cannot continue", batch.id)
                error = RequestError("The server failed on this batch.", remedy="Try again.")
                self._fail(owner, batch.id, error)

    async def _work(self, owner: str, batch: Batch) -> None:
        """Bring one batch to its end."""
        caller = self._caller_of(owner)
        if caller is None:
            raise RequestError(
                "The key of this batch is not valid any more.", remedy="Use another."
            )
        file = self._files.find(owner, batch.input_file_id, "input_file_id")
        pieces = list(self._files.read(owner, file))
        lines, errors = await asyncio.to_thread(read_lines, pieces, batch.endpoint)
        if errors:
            data = [msgspec.to_builtins(error) for error in errors]
            answer = {"object": "list", "data": data}
            self._batches.keep(owner, batch.turned("failed", errors=answer))
            return
        done = [self._batches.outcome(owner, batch, number) for number in range(len(lines))]
        work = _Work(owner, caller, batch, lines, done)
        if batch.status == "validating":
            batch = batch.turned("in_progress", request_counts=work.counts)
            self._batches.keep(owner, batch)
        if batch.status == "in_progress":
            await self._answer(work)
        self._finish(work)

    async def _answer(self, work: _Work) -> None:
        """Answer the lines that have no answer yet, until all have one or the batch ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, outcome in enumerate(work.done):
                    if outcome is not None:
                        continue
                    while not self._has_room() and not self._is_ending(work.batch):
                        await asyncio.sleep(POLL_S)
                    if self._is_ending(work.batch):
                        break
                    self._num_asked += 1
                    tasks.create_task(self._one(work, number))
        except* RequestError as group:
            raise group.exceptions[0] from group

    async def _one(self, work: _Work, number: int) -> None:
        """Answer a line, and keep the answer."""
        line = work.lines[number]
        body = line.body
        if line.url not in _WITHOUT_PRIORITY:
            body = {"priority": LOWEST_PRIORITY, **body}
        sent = msgspec.json.encode(body)
        try:
            answer = await self._ask(work.caller, line.url, sent)
            while answer.status in _BUSY and not self._is_ending(work.batch):
                await asyncio.sleep(AGAIN_S)
                answer = await self._ask(work.caller, line.url, sent)
        finally:
            self._num_asked -= 1
        if answer.status in _BUSY:
            return
        outcome = _outcome(line, answer)
        self._batches.add(work.owner, work.batch, number, outcome)
        work.put(number, outcome)
        standing = self._batches.find(work.owner, work.batch.id)
        counted = msgspec.structs.replace(standing, request_counts=work.counts)
        self._batches.keep(work.owner, counted)

    def _has_room(self) -> bool:
        return self._num_asked < self._num_free(self._num_asked)

    def _is_ending(self, batch: Batch) -> bool:
        return batch.id in self._cancelled or _is_late(batch)

    def _finish(self, work: _Work) -> None:
        """Write the answers to files, and say how the batch ended."""
        owner, done = work.owner, work.done
        batch = self._batches.find(owner, work.batch.id)
        is_cancelled = batch.status == "cancelling"
        is_late = _is_late(batch) and None in done
        if not is_cancelled and not is_late:
            batch = batch.turned("finalizing")
            self._batches.keep(owner, batch)
        columns = (
            ("output_file_id", "output", [o.text for o in done if o and not o.is_error]),
            ("error_file_id", "error", [o.text for o in done if o and o.is_error]),
        )
        files = {
            field: self._files.write(owner, f"{batch.id}_{name}.jsonl", "batch_output", texts).id
            for field, name, texts in columns
            if texts
        }
        end = "cancelled" if is_cancelled else "expired" if is_late else "completed"
        self._batches.keep(owner, batch.turned(end, **files, request_counts=work.counts))
        self._batches.drop_outcomes(owner, batch, len(done))
        self._cancelled.discard(batch.id)

    def _fail(self, owner: str, name: str, error: RequestError) -> None:
        batch = self._batches.find(owner, name)
        answer = {
            "code": error.code,
            "message": message_of(error),
            "line": None,
            "param": error.field,
        }
        errors = {"object": "list", "data": [answer]}
        self._batches.keep(owner, batch.turned("failed", errors=errors))


def _is_late(batch: Batch) -> bool:
    return time.time() > batch.expires_at


def _outcome(line: Line, answer: Answered) -> Outcome:
    """Return the answer to a line as its file has it."""
    response = {
        "status_code": answer.status,
        "request_id": answer.request_id,
        "body": msgspec.Raw(answer.body),
    }
    value = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": line.custom_id,
        "response": response,
        "error": None,
    }
    return Outcome(line.custom_id, answer.status >= 400, msgspec.json.encode(value) + b"\n")
