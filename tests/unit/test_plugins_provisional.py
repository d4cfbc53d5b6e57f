"""The provisional seams, kept true by doubles: what moves pages, and what keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from headstock.errors import DeviceError
from headstock.plugins.hooks import hookimpl
from headstock.plugins.loader import discover
from headstock.plugins.places import ask_each
from headstock.plugins.tiers import CacheTier, TierRegistry
from headstock.plugins.transports import KVTransport, PageBlock, Ticket, TransportRegistry

SENT: dict[tuple[str, bytes], list[torch.Tensor]] = {}
"""What doubles have under way, by address and key."""

ROOM_BYTES = 3 * 48
"""Of the tier: three pages of two layers, six float32 each."""


class Over:
    """A ticket of what is done, or of an end that was lost."""

    def __init__(self, *, is_lost: bool = False) -> None:
        self._is_lost = is_lost

    def is_done(self) -> bool:
        if self._is_lost:
            raise DeviceError("The other end was lost.", remedy="Compute the prompt here.")
        return True


def copied(block: PageBlock) -> list[torch.Tensor]:
    index = torch.tensor(list(block.pages))
    return [memory.index_select(block.axis, index) for memory in block.memory]


def paste(block: PageBlock, pages: Sequence[torch.Tensor]) -> None:
    index = torch.tensor(list(block.pages))
    for memory, values in zip(block.memory, pages, strict=True):
        memory.index_copy_(block.axis, index, values)


class Loopback:
    """Moves pages within this process."""

    def __init__(self, device: object, address: str) -> None:
        self.address = address

    def send(self, to: str, key: bytes, blocks: Sequence[PageBlock]) -> Ticket:
        SENT[to, key] = [page for block in blocks for page in copied(block)]
        return Over()

    def receive(self, sender: str, key: bytes, blocks: Sequence[PageBlock]) -> Ticket:
        if (self.address, key) not in SENT:
            return Over(is_lost=True)
        pages = iter(SENT.pop((self.address, key)))
        for block in blocks:
            paste(block, [next(pages) for _ in block.memory])
        return Over()

    def close(self) -> None:
        SENT.clear()


class Kept:
    """Keeps pages in memory, the oldest leave first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pages: dict[bytes, list[torch.Tensor]] = {}

    @property
    def num_bytes(self) -> int:
        return sum(page.nbytes for pages in self._pages.values() for page in pages)

    def has(self, digests: Sequence[bytes]) -> Sequence[bool]:
        return [digest in self._pages for digest in digests]

    def store(self, digests: Sequence[bytes], block: PageBlock) -> Ticket:
        for place, digest in enumerate(digests):
            self._pages[digest] = [
                pages.narrow(block.axis, place, 1).clone() for pages in copied(block)
            ]
            while self.num_bytes > self._max_bytes:
                self._pages.pop(next(iter(self._pages)))
        return Over()

    def fetch(self, digests: Sequence[bytes], block: PageBlock) -> Ticket:
        found = [self._pages[digest] for digest in digests]
        paste(block, [torch.cat(layer, dim=block.axis) for layer in zip(*found, strict=True)])
        return Over()

    def close(self) -> None:
        self._pages.clear()


class Plugin:
    HOOK_API = (2, 2)

    @hookimpl
    def headstock_register_kv_transports(self, registry: TransportRegistry) -> None:
        registry.add("loopback", f"{__name__}:Loopback")

    @hookimpl
    def headstock_register_cache_tiers(self, registry: TierRegistry) -> None:
        registry.add("kept", f"{__name__}:Kept")


@pytest.fixture
def transport() -> KVTransport:
    registry = TransportRegistry()
    plugins = discover(backend="double", extra={"double": Plugin()})
    assert ask_each(plugins, "headstock_register_kv_transports", registry) == []
    return registry.load("loopback")(None, "here")


@pytest.fixture
def tier() -> CacheTier:
    registry = TierRegistry()
    plugins = discover(backend="double", extra={"double": Plugin()})
    assert ask_each(plugins, "headstock_register_cache_tiers", registry) == []
    return registry.load("kept")(ROOM_BYTES)


def block(*pages: int) -> tuple[PageBlock, list[torch.Tensor]]:
    memory = [torch.arange(24.0).view(2, 4, 3) + 100 * layer for layer in range(2)]
    return PageBlock(group=0, tag="pages-kv-thd", pages=pages, memory=memory, axis=1), memory


def test_pages_arrive_at_the_other_end_as_they_were(transport: KVTransport) -> None:
    given, sent = block(1, 3)
    taken, received = block(2, 0)
    assert transport.send("here", b"key", [given]).is_done()
    assert transport.receive("there", b"key", [taken]).is_done()
    for layer in range(2):
        assert torch.equal(received[layer][:, [2, 0]], sent[layer][:, [1, 3]])


def test_pages_of_a_lost_end_are_an_error_and_not_garbage(transport: KVTransport) -> None:
    taken, _ = block(2)
    with pytest.raises(DeviceError, match="lost"):
        transport.receive("there", b"unknown", [taken]).is_done()


def test_a_tier_gives_back_what_it_was_given(tier: CacheTier) -> None:
    given, memory = block(1, 3)
    before = [layer.clone() for layer in memory]
    assert tier.store([b"a", b"b"], given).is_done()
    for layer in memory:
        layer.zero_()
    assert tier.has([b"a", b"c", b"b"]) == [True, False, True]
    assert tier.fetch([b"b"], block_at(memory, 3)).is_done()
    assert torch.equal(memory[1][:, 3], before[1][:, 3])
    assert not memory[1][:, 1].any()


def test_a_tier_without_room_keeps_less(tier: CacheTier) -> None:
    given, _ = block(0, 1, 2, 3)
    tier.store([b"a", b"b", b"c", b"d"], given)
    assert tier.num_bytes <= ROOM_BYTES
    assert not all(tier.has([b"a", b"b", b"c", b"d"]))


def block_at(memory: list[torch.Tensor], *pages: int) -> PageBlock:
    return PageBlock(group=0, tag="pages-kv-thd", pages=pages, memory=memory, axis=1)
