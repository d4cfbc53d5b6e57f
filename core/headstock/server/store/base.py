"""What a store is, in memory or on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from headstock.errors import RequestError
from headstock.observe.units import GIB

MIB = 1024**2
MAX_PART_BYTES = 64 * MIB
"""Largest part of a value. What is larger is a file: see ``Blobs``."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept.

    Attributes:
        max_bytes: Of all values.
        max_owner_bytes: Of the values of one owner.
    """

    max_bytes: int = GIB
    max_owner_bytes: int = 256 * MIB


@dataclass(frozen=True, slots=True)
class Entry:
    """A value that is kept.

    Attributes:
        kind: Which part of the server keeps it, such as ``response``.
        owner: Whose it is: ``Caller.owner``.
        name: Unique among its owner's of this kind.
        put_s: When it was put. Seconds since 1970.
    """

    kind: str
    owner: str
    name: str
    put_s: float


class Store(Protocol):
    """Values by kind, owner and name; a value is bytes, or several parts that were added.

    One thread, that of the event loop, uses a store. Nothing here waits for a disk to confirm.
    """

    def put(self, kind: str, owner: str, name: str, value: bytes) -> None:
        """Keep a value of one part, in place of the one of that name.

        When this returns the value survives the death of the process, if the store is on disk.

        Raises:
            RequestError: Code ``storage_full``: there is no room for it. The one of that name, if
                any, stays.
        """
        ...

    def add(self, kind: str, owner: str, name: str, part: bytes) -> None:
        """Keep one more part of a value, with the next :meth:`flush`. Nothing if there is none."""
        ...

    def flush(self) -> list[Entry]:
        """Write what was added; return values that could not be kept whole, which are dropped."""
        ...

    def get(self, kind: str, owner: str, name: str) -> bytes | None:
        """Return the first part of a value; None: there is no such value."""
        ...

    def parts(self, kind: str, owner: str, name: str) -> list[bytes]:
        """Return all parts of a value; none: there is no such value."""
        ...

    def drop(self, kind: str, owner: str, name: str) -> bool:
        """Forget a value; tell whether there was one."""
        ...

    def entries(self, kind: str, owner: str | None = None) -> list[Entry]:
        """Return what is kept of a kind, in the order of the first :meth:`put`.

        Args:
            kind: Of which kind.
            owner: Whose; None: everybody's.
        """
        ...

    def used(self, owner: str) -> int:
        """Return how much is kept for an owner. Bytes."""
        ...

    def room(self, owner: str) -> int:
        """Return how much more may be kept for an owner; less than 0: too much is. Bytes."""
        ...


def check_room(bounds: Bounds, total: int, used: int, more: int) -> None:
    """Refuse what does not fit.

    Args:
        bounds: Of the store.
        total: Bytes kept of all owners.
        used: Of this one.
        more: That come.

    Raises:
        RequestError: Code ``storage_full``.
    """
    if more > MAX_PART_BYTES:
        raise full(f"It has {more} bytes; at most {MAX_PART_BYTES} are kept.", "Store less.")
    if used + more > bounds.max_owner_bytes:
        raise full(
            f"This key keeps {used} bytes of {bounds.max_owner_bytes}, and {more} more are asked.",
            "Delete what is stored, or ask for a larger --state-key-bytes.",
        )
    if total + more > bounds.max_bytes:
        raise full(
            f"The server keeps {total} bytes of {bounds.max_bytes}, and {more} more are asked.",
            "Delete what is stored, or ask for a larger --state-bytes.",
        )


def full(problem: str, remedy: str) -> RequestError:
    """Return the error for what cannot be kept."""
    return RequestError(problem, remedy=remedy, code="storage_full")
