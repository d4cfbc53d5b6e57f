"""A store in a folder: a log of what was put, added and dropped, in files of bounded size.

What is written with one call of the system survives the death of the process; what
:meth:`DiskStore.sync` has seen survives that of the machine. The oldest file is deleted once
nothing in it is needed; where more than half of all is waste, what is needed of it is first
written again. A value that is written again is one record: it is there whole, or as it was before.
A file is only deleted when the disk has confirmed those after it.
"""

from __future__ import annotations

import logging
import re
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headstock.errors import ConfigError
from headstock.server.store.base import MIB, Bounds, Entry, check_room, full
from headstock.server.store.segment import Segment, framed

SEGMENT_BYTES = 8 * MIB
_NAME = re.compile(r"(\d{8})\.log")
_SPAN = 2**40
"""A place is the number of a file times this, plus where in it the record begins."""
log = logging.getLogger(__name__)


class Put(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """A value, with all parts that it has so far."""

    number: int
    kind: str
    owner: str
    name: str
    put_s: float
    parts: list[bytes]


class Add(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """One more part of a value."""

    number: int
    part: bytes


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The end of a value."""

    number: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Put | Add | Drop).decode


@dataclass(slots=True)
class _Value:
    """Where a value is.

    Attributes:
        places: Of its records: a ``Put``, then each ``Add`` since.
        size: Of its parts together. Bytes.
        segments: Numbers of the files that have records of it.
    """

    number: int
    entry: Entry
    places: array[int] = field(default_factory=lambda: array("Q"))
    size: int = 0
    segments: set[int] = field(default_factory=set[int])


class DiskStore:
    """Keeps values in the files of a folder, which is this store's alone.

    Args:
        folder: Made if it is not there.
        bounds: How much. The disk may need twice as much, and some megabytes.
        segment_bytes: Size from which a file is followed by the next.

    Raises:
        ConfigError: A file is not this store's, or of another version.
    """

    def __init__(
        self, folder: Path, bounds: Bounds | None = None, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = folder
        self._bounds = bounds or Bounds()
        self._segment_bytes = segment_bytes
        self._values: dict[tuple[str, str, str], _Value] = {}
        self._by_number: dict[int, _Value] = {}
        self._used: dict[str, int] = {}
        self._live_bytes = 0
        self._next_number = 1
        self._segments: dict[int, Segment] = {}
        self._users: dict[int, set[int]] = {}
        """By number of a file: numbers of the values that have records in it."""
        self._pending = bytearray()
        self._pending_adds: list[tuple[_Value, int, int]] = []
        """Of what :meth:`flush` writes: a value, where its record begins, the size of its part."""
        self._unsynced: set[Segment] = set()
        self._retired: list[Segment] = []
        """Files that nothing needs once the newer ones are safe on the disk."""
        self._is_failing = False
        self._open()

    # What callers ask

    def put(self, kind: str, owner: str, name: str, value: bytes) -> None:
        """See :meth:`Store.put`."""
        known = self._values.get((kind, owner, name))
        before = 0 if known is None else known.size
        check_room(self._bounds, self._live_bytes - before, self.used(owner) - before, len(value))
        number = self._next_number
        put_s = time.time() if known is None else known.entry.put_s
        entry = Entry(kind, owner, name, put_s)
        place = self._write(_encode(Put(number, kind, owner, name, put_s, [value])))
        self._next_number += 1
        if known is not None:
            self._forget(known)  # as its reader will, who meets another value of its name
        self._know(_Value(number, entry), place, len(value))

    def add(self, kind: str, owner: str, name: str, part: bytes) -> None:
        """See :meth:`Store.add`."""
        known = self._values.get((kind, owner, name))
        if known is not None:
            self._pending_adds.append((known, len(self._pending), len(part)))
            self._pending += framed(_encode(Add(known.number, part)))

    def flush(self) -> list[Entry]:
        """See :meth:`Store.flush`."""
        if not self._pending:
            return []
        adds, self._pending_adds = self._pending_adds, []
        data, self._pending = self._pending, bytearray()
        more = sum(size for _, _, size in adds)
        base = None
        if self._live_bytes + more <= self._bounds.max_bytes:
            try:
                base = self._append(data)
            except OSError as error:
                self._fail(error)
        if base is None:
            lost = {value.number: value for value, _, _ in adds if value.number in self._by_number}
            for value in lost.values():
                self._forget(value)
                self._write_drop(value)
            return [value.entry for value in lost.values()]
        for value, offset, size in adds:
            if value.number in self._by_number:
                self._place(value, base + offset, size)
        return []

    def get(self, kind: str, owner: str, name: str) -> bytes | None:
        """See :meth:`Store.get`."""
        known = self._values.get((kind, owner, name))
        if known is None:
            return None
        found = self._read(known, known.places[0])
        return found[0] if found else None

    def parts(self, kind: str, owner: str, name: str) -> list[bytes]:
        """See :meth:`Store.parts`."""
        known = self._values.get((kind, owner, name))
        if known is None:
            return []
        self.flush()
        return [part for place in known.places for part in self._read(known, place)]

    def drop(self, kind: str, owner: str, name: str) -> bool:
        """See :meth:`Store.drop`."""
        known = self._values.get((kind, owner, name))
        if known is None:
            return False
        self._forget(known)
        self._write_drop(known)
        return True

    def entries(self, kind: str, owner: str | None = None) -> list[Entry]:
        """See :meth:`Store.entries`."""
        found = [
            value.entry
            for value in self._values.values()
            if value.entry.kind == kind and owner in (None, value.entry.owner)
        ]
        return sorted(found, key=lambda entry: entry.put_s)  # values that were moved come last

    def used(self, owner: str) -> int:
        """See :meth:`Store.used`."""
        return self._used.get(owner, 0)

    def room(self, owner: str) -> int:
        """See :meth:`Store.room`."""
        bounds = self._bounds
        return min(bounds.max_owner_bytes - self.used(owner), bounds.max_bytes - self._live_bytes)

    # Life

    @property
    def is_dirty(self) -> bool:
        """Whether something was written since the last :meth:`sync`."""
        return bool(self._unsynced or self._retired)

    def sync(self) -> None:
        """Wait until the disk has all that was written before. Any one thread may call it.

        Raises:
            OSError: It has not, and perhaps never will.
        """
        unsynced, self._unsynced = self._unsynced, set()
        retired, self._retired = self._retired, []
        for segment in unsynced.difference(retired):
            segment.sync()
        for segment in retired:
            segment.remove()

    def close(self) -> None:
        """Write what is left, and close the files."""
        self.flush()
        for segment in (*self._segments.values(), *self._retired):
            segment.close()
        self._segments, self._retired = {}, []

    # Files

    def _open(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        numbers = [
            int(found[1])
            for path in sorted(self._folder.iterdir())
            if (found := _NAME.fullmatch(path.name))
        ]
        for number in numbers:
            segment = self._segment(number)
            for at, record in segment.records(is_last=number == numbers[-1]):
                self._replay(record, number * _SPAN + at, segment)
        if not numbers:
            self._segment(1)
        self._tidy()

    def _segment(self, number: int) -> Segment:
        path = self._folder / f"{number:08d}.log"
        try:
            segment = Segment(path)
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be opened: {error.strerror}.", remedy="Check --state-dir."
            ) from error
        self._segments[number] = segment
        self._users[number] = set()
        return segment

    def _replay(self, record: bytes, place: int, segment: Segment) -> None:
        try:
            message = _decode(record)
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{segment.path} has a record that this version does not know.",
                remedy="Serve with the version that wrote it, or give another --state-dir.",
            ) from error
        self._next_number = max(self._next_number, message.number + 1)
        known = self._by_number.get(message.number)
        match message:
            case Put():
                if known is not None:
                    self._forget(known)
                same = self._values.get((message.kind, message.owner, message.name))
                if same is not None:
                    self._forget(same)
                entry = Entry(message.kind, message.owner, message.name, message.put_s)
                size = sum(map(len, message.parts))
                self._know(_Value(message.number, entry), place, size)
            case Add() if known is not None:
                self._place(known, place, len(message.part))
            case Drop() if known is not None:
                self._forget(known)
            case _:
                pass  # of a value whose beginning is in a file that was deleted

    def _write(self, record: bytes) -> int:
        """Write a record now, after what waits for it; return its place.

        Raises:
            RequestError: Code ``storage_full``.
        """
        self.flush()
        try:
            return self._append(framed(record))
        except OSError as error:
            self._fail(error)
            why = error.strerror or error
            raise full(f"The server's disk does not take it: {why}.", "Try later.") from error

    def _write_drop(self, value: _Value) -> None:
        """Have it forgotten by the next process too."""
        try:
            self._append(framed(_encode(Drop(value.number))))
        except OSError as error:
            self._fail(error)  # it comes back after a restart: better than to fail now

    def _append(self, data: bytes | bytearray) -> int:
        """Write ``data`` and return its place.

        Raises:
            OSError: Nothing was written.
        """
        number = max(self._segments)
        segment = self._segments[number]
        if segment.size > self._segment_bytes:
            number += 1
            segment = Segment(self._folder / f"{number:08d}.log")
            self._segments[number], self._users[number] = segment, set()
            self._tidy()
        at = segment.size
        segment.append(data)
        self._unsynced.add(segment)
        self._is_failing = False
        return number * _SPAN + at

    def _fail(self, error: OSError) -> None:
        if not self._is_failing:
            log.error("%s takes no more: %s", self._folder, error.strerror or error)
        self._is_failing = True

    def _tidy(self) -> None:
        """Delete the oldest files, if nothing in them is needed or much of all is waste."""
        while len(self._segments) > 1:
            oldest = min(self._segments)
            total = sum(segment.size for segment in self._segments.values())
            needed = self._users[oldest]
            is_wasteful = total > 2 * (self._live_bytes + self._segment_bytes)
            if needed and not is_wasteful:
                return
            try:
                for number in sorted(needed):
                    self._write_again(self._by_number[number])
            except OSError as error:
                self._fail(error)
                return
            self._retired.append(self._segments.pop(oldest))
            del self._users[oldest]

    def _write_again(self, value: _Value) -> None:
        """Write a value with all its parts as one record, in the newest file."""
        parts = [part for place in value.places for part in self._read(value, place)]
        entry = value.entry
        again = Put(value.number, entry.kind, entry.owner, entry.name, entry.put_s, parts)
        newest = max(self._segments)
        at = self._segments[newest].size
        self._segments[newest].append(framed(_encode(again)))
        self._unsynced.add(self._segments[newest])
        for number in value.segments:
            self._users[number].discard(value.number)
        value.places, value.segments = array("Q", [newest * _SPAN + at]), {newest}
        self._users[newest].add(value.number)

    def _read(self, value: _Value, place: int) -> list[bytes]:
        number, at = divmod(place, _SPAN)
        message = _decode(self._segments[number].read(at))
        assert not isinstance(message, Drop), f"{value.entry} has a place that drops it"
        return message.parts if isinstance(message, Put) else [message.part]

    # What is known of values

    def _know(self, value: _Value, place: int, size: int) -> None:
        entry = value.entry
        self._values[entry.kind, entry.owner, entry.name] = value
        self._by_number[value.number] = value
        self._place(value, place, size)

    def _place(self, value: _Value, place: int, size: int) -> None:
        number = place // _SPAN
        value.places.append(place)
        value.segments.add(number)
        self._users[number].add(value.number)
        self._count(value, size)

    def _forget(self, value: _Value) -> None:
        entry = value.entry
        del self._values[entry.kind, entry.owner, entry.name]
        del self._by_number[value.number]
        for number in value.segments:
            self._users[number].discard(value.number)
        self._count(value, -value.size)

    def _count(self, value: _Value, more: int) -> None:
        value.size += more
        self._live_bytes += more
        used = self._used.get(value.entry.owner, 0) + more
        if used:
            self._used[value.entry.owner] = used
        else:
            self._used.pop(value.entry.owner, None)
