"""A store for the life of the process."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from headstock.server.store.base import Bounds, Entry, check_room


@dataclass(slots=True)
class _Value:
    entry: Entry
    parts: list[bytes] = field(default_factory=list[bytes])


class MemoryStore:
    """Keeps values in memory.

    Args:
        bounds: How much.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self._values: dict[tuple[str, str, str], _Value] = {}
        self._used: dict[str, int] = {}
        self._total = 0

    def put(self, kind: str, owner: str, name: str, value: bytes) -> None:
        """See :meth:`Store.put`."""
        key = (kind, owner, name)
        known = self._values.get(key)
        before = 0 if known is None else sum(map(len, known.parts))
        check_room(self._bounds, self._total - before, self.used(owner) - before, len(value))
        self._count(owner, len(value) - before)
        if known is not None:
            known.parts = [value]
        else:
            self._values[key] = _Value(Entry(kind, owner, name, time.time()), [value])

    def add(self, kind: str, owner: str, name: str, part: bytes) -> None:
        """See :meth:`Store.add`."""
        known = self._values.get((kind, owner, name))
        if known is not None:
            known.parts.append(part)
            self._count(owner, len(part))

    def flush(self) -> list[Entry]:
        """See :meth:`Store.flush`; memory loses nothing."""
        return []

    def get(self, kind: str, owner: str, name: str) -> bytes | None:
        """See :meth:`Store.get`."""
        known = self._values.get((kind, owner, name))
        return None if known is None else known.parts[0]

    def parts(self, kind: str, owner: str, name: str) -> list[bytes]:
        """See :meth:`Store.parts`."""
        known = self._values.get((kind, owner, name))
        return [] if known is None else list(known.parts)

    def drop(self, kind: str, owner: str, name: str) -> bool:
        """See :meth:`Store.drop`."""
        known = self._values.pop((kind, owner, name), None)
        if known is None:
            return False
        self._count(owner, -sum(map(len, known.parts)))
        return True

    def entries(self, kind: str, owner: str | None = None) -> list[Entry]:
        """See :meth:`Store.entries`."""
        return [
            value.entry
            for value in self._values.values()
            if value.entry.kind == kind and owner in (None, value.entry.owner)
        ]

    def used(self, owner: str) -> int:
        """See :meth:`Store.used`."""
        return self._used.get(owner, 0)

    def room(self, owner: str) -> int:
        """See :meth:`Store.room`."""
        bounds = self._bounds
        return min(bounds.max_owner_bytes - self.used(owner), bounds.max_bytes - self._total)

    def _count(self, owner: str, more: int) -> None:
        self._total += more
        used = self._used.get(owner, 0) + more
        if used:
            self._used[owner] = used
        else:
            self._used.pop(owner, None)
