"""What moves pages between engines: where plugins name it, and what it must do.

Provisional: nothing in Headstock moves pages between engines yet. The names may change with any
minor version of the hooks until something does; a test double keeps them true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headstock.plugins.places import Places

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PageBlock:
    """Pages of one group, as the engine keeps them.

    Attributes:
        group: Which page group.
        tag: The page format's: only pages of equal tags can be taken over as they are.
        pages: Their numbers in ``memory``.
        memory: Of one layer, or of all where pages hold all layers.
        axis: The dimension of ``memory`` that counts pages.
    """

    group: int
    tag: str
    pages: Sequence[int]
    memory: Sequence[Tensor]
    axis: int


class Ticket(Protocol):
    """A transfer under way. Both ends keep their pages until it is over."""

    def is_done(self) -> bool:
        """Whether all pages have arrived; never waits.

        Raises:
            DeviceError: The other end was lost: no page may be used.
        """
        ...


class KVTransport(Protocol):
    """Moves pages of requests to and from another engine."""

    @property
    def address(self) -> str:
        """Where the other engines reach this one."""
        ...

    def send(self, to: str, key: bytes, blocks: Sequence[PageBlock]) -> Ticket:
        """Start sending pages under a key that both ends know: the digest of the last token."""
        ...

    def receive(self, sender: str, key: bytes, blocks: Sequence[PageBlock]) -> Ticket:
        """Start receiving the pages of ``key`` into ``blocks``."""
        ...

    def close(self) -> None:
        """End what is under way and free what it holds."""
        ...


class TransportRegistry(Places):
    """The transports that plugins named.

    The function at a place takes the :class:`~headstock.plugins.device.Device` and the address to
    listen on, and returns a :class:`KVTransport`.
    """

    __slots__ = ()
    kind = "transport of pages"
