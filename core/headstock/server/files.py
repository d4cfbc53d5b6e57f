"""Files of callers, kept in the server's store piece by piece."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterable, Iterable, Iterator

import msgspec

from headstock.errors import RequestError
from headstock.server.store import Store

KIND = "file"
PART_KIND = "file_part"
PART_BYTES = 1024**2
"""Pieces are this large, so that other requests go on between them. Bytes."""
MAX_FILES = 10_000
"""Files of one owner."""


class StoredFile(msgspec.Struct, frozen=True):
    """What is known of a file.

    Attributes:
        num_bytes: Of all its parts.
        created_at: Seconds since 1970.
    """

    id: str
    filename: str
    purpose: str
    num_bytes: int
    num_parts: int
    created_at: int


class FileBook:
    """The files of all callers.

    Args:
        store: Where they are kept. What was begun there and not ended is forgotten.
        max_bytes: Largest file.
    """

    def __init__(self, store: Store, max_bytes: int) -> None:
        self._store = store
        self._max_bytes = max_bytes
        whole = {(entry.owner, entry.name) for entry in store.entries(KIND)}
        for entry in store.entries(PART_KIND):
            if (entry.owner, entry.name.partition("/")[0]) not in whole:
                store.drop(PART_KIND, entry.owner, entry.name)

    async def keep(
        self, owner: str, filename: str, purpose: str, pieces: AsyncIterable[bytes]
    ) -> StoredFile:
        """Keep a file; it is there once all of it is.

        Args:
            owner: Whose.
            filename: What its owner calls it.
            purpose: What it is for.
            pieces: Its bytes, at most ``PART_BYTES`` each.

        Raises:
            RequestError: It is too large, or there is no room for it.
        """
        self._check_count(owner)
        name, num_parts, num_bytes = f"file-{uuid.uuid4().hex}", 0, 0
        try:
            async for piece in pieces:
                num_bytes += len(piece)
                if num_bytes > self._max_bytes:
                    raise RequestError(
                        f"file is larger than {self._max_bytes} bytes.",
                        remedy="Split it, or raise --max-file-bytes.",
                        field="file",
                        code="body_too_large",
                    )
                self._store.put(PART_KIND, owner, _part(name, num_parts), piece)
                num_parts += 1
            return self._add(owner, StoredFile(
                name, filename, purpose, num_bytes, num_parts, int(time.time())
            ))  # fmt: skip
        except BaseException:
            self._drop_parts(owner, name, num_parts)
            raise

    def write(self, owner: str, filename: str, purpose: str, lines: Iterable[bytes]) -> StoredFile:
        """Keep a file of our own making; ``lines`` are short.

        Raises:
            RequestError: There is no room for it.
        """
        name, num_parts, num_bytes = f"file-{uuid.uuid4().hex}", 0, 0
        try:
            for piece in _joined(lines):
                self._store.put(PART_KIND, owner, _part(name, num_parts), piece)
                num_parts += 1
                num_bytes += len(piece)
            return self._add(owner, StoredFile(
                name, filename, purpose, num_bytes, num_parts, int(time.time())
            ))  # fmt: skip
        except BaseException:
            self._drop_parts(owner, name, num_parts)
            raise

    def find(self, owner: str, name: str, field: str | None = None) -> StoredFile:
        """Return a file.

        Raises:
            RequestError: There is none of that name.
        """
        found = self._store.get(KIND, owner, name) if len(name) <= 128 else None
        if found is None:
            raise RequestError(
                f"There is no file {name[:128]!r}.",
                remedy="GET /v1/files lists those that there are.",
                field=field,
                code="not_found",
            )
        return msgspec.json.decode(found, type=StoredFile)

    def all(self, owner: str) -> list[StoredFile]:
        """Return an owner's files, oldest first."""
        found = [self._store.get(KIND, owner, e.name) for e in self._store.entries(KIND, owner)]
        return [msgspec.json.decode(each, type=StoredFile) for each in found if each is not None]

    def read(self, owner: str, file: StoredFile) -> Iterator[bytes]:
        """Give a file's pieces.

        Raises:
            RequestError: It was deleted meanwhile.
        """
        for number in range(file.num_parts):
            piece = self._store.get(PART_KIND, owner, _part(file.id, number))
            if piece is None:
                raise RequestError(
                    f"The file {file.id!r} was deleted.", remedy="Send it again.", code="not_found"
                )
            yield piece

    def drop(self, owner: str, name: str) -> None:
        """Delete a file.

        Raises:
            RequestError: There is none of that name.
        """
        file = self.find(owner, name)
        self._store.drop(KIND, owner, name)
        self._drop_parts(owner, name, file.num_parts)

    def _add(self, owner: str, file: StoredFile) -> StoredFile:
        self._store.put(KIND, owner, file.id, msgspec.json.encode(file))
        return file

    def _drop_parts(self, owner: str, name: str, count: int) -> None:
        for number in range(count):
            self._store.drop(PART_KIND, owner, _part(name, number))

    def _check_count(self, owner: str) -> None:
        if len(self._store.entries(KIND, owner)) >= MAX_FILES:
            raise RequestError(
                f"There are {MAX_FILES} files already.",
                remedy="Delete some.",
                field="file",
                code="storage_full",
            )


def _part(name: str, number: int) -> str:
    return f"{name}/{number}"


def _joined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Give ``lines`` in pieces of about ``PART_BYTES``."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= PART_BYTES:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
