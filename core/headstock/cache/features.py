"""Which pages of the store hold the features of which image. Knows images only by their digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headstock.cache.pool import PagePool


@dataclass(slots=True, eq=False)
class StoredItem:
    """The features of one image.

    Attributes:
        digest: Of its content.
        pages: Where they lie, in order.
        users: Who holds it.
        is_listed: Whether its digest finds it.
    """

    digest: bytes
    pages: list[int]
    users: int = 0
    is_listed: bool = True


class FeatureStore:
    """Hands out pages to images and finds them again; idle ones give way, oldest use first.

    Args:
        num_pages: Pages there are, the null page included.
        page_tokens: Tokens a page holds.
    """

    def __init__(self, num_pages: int, page_tokens: int) -> None:
        self._pool = PagePool(num_pages)
        self._page_tokens = page_tokens
        self._items: dict[bytes, StoredItem] = {}
        """The least recently used first."""

    @property
    def max_tokens(self) -> int:
        """Most tokens that an image can have."""
        return self._pool.num_total * self._page_tokens

    def find(self, digest: bytes) -> StoredItem | None:
        """Return the image of that content; it is the most recently used one now."""
        item = self._items.pop(digest, None)
        if item is not None:
            self._items[digest] = item
        return item

    def make(self, digest: bytes, num_tokens: int) -> StoredItem | None:
        """Take pages for an image that is not there, and list it.

        Returns:
            None: what is held leaves too few pages; then nothing has changed.
        """
        assert digest not in self._items, "the image is there already"
        count = -(-num_tokens // self._page_tokens)
        idle = [item for item in self._items.values() if item.users == 0]
        if count > self._pool.num_free + sum(len(item.pages) for item in idle):
            return None
        for item in idle:
            if count <= self._pool.num_free:
                break
            self.drop(item)
        pages = self._pool.take(count)
        assert pages is not None, f"{count} pages were found free, and are not"
        made = self._items[digest] = StoredItem(digest, pages)
        return made

    def drop(self, item: StoredItem) -> None:
        """Stop finding it by its digest; its pages are free once it has no users."""
        if item.is_listed:
            item.is_listed = False
            del self._items[item.digest]
            if item.users == 0:
                self._pool.give_back(item.pages)

    def let_go(self, items: Sequence[StoredItem]) -> None:
        """Hold each of ``items`` once less."""
        for item in items:
            assert item.users > 0, "an image is released that is not held"
            item.users -= 1
            if item.users == 0 and not item.is_listed:
                self._pool.give_back(item.pages)

    def clear(self) -> None:
        """Stop finding anything by digest: what the pages hold is unknown."""
        for item in list(self._items.values()):
            self.drop(item)

    def check(self) -> None:
        """Assert that every page is free or an image's, once. For tests."""
        self._pool.check()
        listed = [page for item in self._items.values() for page in item.pages]
        assert len(set(listed)) == len(listed), "two images have one page"
