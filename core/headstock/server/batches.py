"""Batches: requests in a file that are answered when there is time, into another file."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec

from headstock.errors import RequestError
from headstock.server.errors import message_of
from headstock.server.store import Store

KIND = "batch"
LINE_KIND = "batch_line"
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
MAX_LINES = 50_000
MAX_ERRORS = 100
"""Most lines at fault that are reported."""
MAX_BATCHES = 1000
"""Batches of one owner that are remembered."""
WINDOW_S = 24 * 3600
Status = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled",
    "expired",
]  # fmt: skip
OVER = frozenset({"completed", "failed", "cancelled", "expired"})


class Counts(msgspec.Struct, frozen=True):
    """Lines of a batch."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class LineError(msgspec.Struct, frozen=True):
    """What is wrong with a line of the input."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch, as its owner sees it. Times are seconds since 1970."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: dict[str, Any] | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: Status = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = Counts()
    metadata: dict[str, str] | None = None

    def turned(self, status: Status, **more: Any) -> Batch:
        """Return the batch in another status, since now."""
        more[f"{status}_at"] = int(time.time())
        return msgspec.structs.replace(self, status=status, **more)


class Line(msgspec.Struct, frozen=True):
    """One request of an input file."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]


class Outcome(msgspec.Struct, frozen=True):
    """The answer to a line, as its line of the output has it."""

    custom_id: str
    is_error: bool
    text: bytes


class BatchBook:
    """The batches of all callers, and the answers of those that are not over.

    Args:
        store: Where they are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(
        self, owner: str, input_file_id: str, endpoint: str, metadata: dict[str, str] | None
    ) -> Batch:
        """Take a batch.

        Raises:
            RequestError: There is no room for it.
        """
        if len(self._store.entries(KIND, owner)) >= MAX_BATCHES:
            self._forget_oldest(owner)
        now = int(time.time())
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=endpoint,
            input_file_id=input_file_id,
            created_at=now,
            expires_at=now + WINDOW_S,
            metadata=metadata,
        )
        self.keep(owner, batch)
        return batch

    def keep(self, owner: str, batch: Batch) -> None:
        """Write down how a batch stands."""
        self._store.put(KIND, owner, batch.id, msgspec.json.encode(batch))

    def find(self, owner: str, name: str) -> Batch:
        """Return a batch.

        Raises:
            RequestError: There is none of that name.
        """
        found = self._store.get(KIND, owner, name) if len(name) <= 128 else None
        if found is None:
            raise RequestError(
                f"There is no batch {name[:128]!r}.",
                remedy="GET /v1/batches lists those that there are.",
                code="not_found",
            )
        return msgspec.json.decode(found, type=Batch)

    def all(self, owner: str) -> list[Batch]:
        """Return an owner's batches, oldest first."""
        return [self.find(owner, entry.name) for entry in self._store.entries(KIND, owner)]

    def unfinished(self) -> list[tuple[str, Batch]]:
        """Return the batches of all owners that are not over, oldest first."""
        entries = sorted(self._store.entries(KIND), key=lambda entry: entry.put_s)
        found = [(entry.owner, self.find(entry.owner, entry.name)) for entry in entries]
        return [(owner, batch) for owner, batch in found if batch.status not in OVER]

    def add(self, owner: str, batch: Batch, number: int, outcome: Outcome) -> None:
        """Keep the answer to a line.

        Raises:
            RequestError: There is no room for it.
        """
        value = msgspec.msgpack.encode(outcome)
        self._store.put(LINE_KIND, owner, f"{batch.id}/{number}", value)

    def outcome(self, owner: str, batch: Batch, number: int) -> Outcome | None:
        """Return the answer to a line; None: it has none yet."""
        value = self._store.get(LINE_KIND, owner, f"{batch.id}/{number}")
        return None if value is None else msgspec.msgpack.decode(value, type=Outcome)

    def drop_outcomes(self, owner: str, batch: Batch, count: int) -> None:
        """Forget the answers, which are in files by now."""
        for number in range(count):
            self._store.drop(LINE_KIND, owner, f"{batch.id}/{number}")

    def _forget_oldest(self, owner: str) -> None:
        for batch in self.all(owner):
            if batch.status in OVER:
                self._store.drop(KIND, owner, batch.id)
                return
        raise RequestError(
            f"{MAX_BATCHES} batches are not over.",
            remedy="Wait, or cancel some.",
            code="queue_full",
        )


def split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Give the lines of a file that comes in pieces, those that are empty too."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    if rest.strip():
        yield rest


def read_lines(pieces: Iterable[bytes], endpoint: str) -> tuple[list[Line], list[LineError]]:
    """Return the requests of an input file, and what is wrong with it."""
    lines: list[Line] = []
    errors: list[LineError] = []
    seen: set[str] = set()
    for number, text in enumerate(split_lines(pieces), start=1):
        if not text.strip():
            continue
        if len(lines) == MAX_LINES:
            problem = f"The file has more than {MAX_LINES} requests."
            return lines, [LineError("too_many_requests", problem)]
        try:
            line = msgspec.json.decode(text, type=Line)
            _check(line, endpoint, seen)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            errors.append(LineError("invalid_json_line", f"{error}"[:300], number))
        except RequestError as error:
            errors.append(LineError(error.code, message_of(error), number, error.field))
        else:
            seen.add(line.custom_id)
            lines.append(line)
        if len(errors) == MAX_ERRORS:
            break
    if not lines and not errors:
        errors.append(LineError("empty_file", "The file has no request."))
    return lines, errors


def _check(line: Line, endpoint: str, seen: set[str]) -> None:
    """Refuse a line that this batch cannot have."""
    if not 1 <= len(line.custom_id) <= 512:
        raise _wrong("custom_id", f"has {len(line.custom_id)} characters", "Use 1 to 512.")
    if line.custom_id in seen:
        raise _wrong("custom_id", f"is {line.custom_id[:64]!r} for the second time", "Change it.")
    if line.method != "POST":
        raise _wrong("method", f"is {line.method[:16]!r}", "Use POST.")
    if line.url != endpoint:
        raise _wrong("url", f"is {line.url[:64]!r}", f"Use the batch's endpoint, {endpoint}.")
    if line.body.get("stream"):
        raise _wrong("body.stream", "is set", "Leave it out: a batch has whole answers.")


def _wrong(field: str, what: str, remedy: str) -> RequestError:
    return RequestError(f"{field} {what}.", remedy=remedy, field=field)
