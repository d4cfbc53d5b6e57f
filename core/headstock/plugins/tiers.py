"""What keeps pages below the device: where plugins name it, and what it must do.

Provisional: the names may change with any minor version of the hooks until a tier in Headstock is
registered by them; a test double keeps them true.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from headstock.plugins.places import Places

if TYPE_CHECKING:
    from headstock.plugins.transports import PageBlock, Ticket


class CacheTier(Protocol):
    """Keeps what nodes of the prefix tree hold, by their digests, outside of the device.

    A digest is a node's id: 16 bytes, equal in every process for the same tokens, model and
    adapter. One engine thread calls it; what waits for storage runs behind tickets.
    """

    @property
    def num_bytes(self) -> int:
        """Bytes that are kept now."""
        ...

    def has(self, digests: Sequence[bytes]) -> Sequence[bool]:
        """Say which digests can be fetched. Answers from memory."""
        ...

    def store(self, digests: Sequence[bytes], block: PageBlock) -> Ticket:
        """Start keeping one page a digest; pages may be used again once the ticket is done.

        What has no room is left out: the tier evicts, or keeps less. It is never an error.
        """
        ...

    def fetch(self, digests: Sequence[bytes], block: PageBlock) -> Ticket:
        """Start copying one page a digest into ``block``; usable once the ticket is done."""
        ...

    def close(self) -> None:
        """End what is under way and free what it holds."""
        ...


class TierRegistry(Places):
    """The tiers that plugins named, in the order in which they are asked.

    The function at a place takes the most bytes that it may keep and returns a :class:`CacheTier`.
    """

    __slots__ = ()
    kind = "cache tier"
