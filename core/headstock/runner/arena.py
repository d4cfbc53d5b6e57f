"""Where the pages of each group lie: in memory of their own, or in an arena that groups share.

Groups that share an arena lie in it like this (each begins at a whole number of its layers' pages
before the first slab, so that one buffer a layer reaches its null page and all slabs)::

    null page of B | null page of A | slab 1 | slab 2 | ...
                                      a page of A: layer 0 | layer 1 | ... | padding

A layer's buffer begins at its part of the null page. Page ``p`` of a plan, which lies in slab
``p // slab_pages``, is entry ``first + (p - slab_pages) * step`` of that buffer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headstock.errors import UnsupportedError
from headstock.ops.attention import CachedLayer, CacheProvider, page_format_of
from headstock.wire.steps import NULL_PAGE, PageGroup


def layer_page_bytes(provider: CacheProvider) -> int:
    """Return the bytes of one page of a layer."""
    one, two = (math.prod(provider.kv_shape(count)) for count in (1, 2))
    return (two - one) * page_format_of(provider).dtype.itemsize


def page_axis(provider: CacheProvider) -> int:
    """Return along which axis of its buffer a provider lays out pages.

    Raises:
        UnsupportedError: No single axis grows by one a page.
    """
    one, two = provider.kv_shape(1), provider.kv_shape(2)
    axes = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    if len(axes) != 1 or two[axes[0]] - one[axes[0]] != 1:
        raise UnsupportedError(
            f"Page format {page_format_of(provider).tag!r} has pages of shape {one} and {two} for"
            " one and two pages; pages must lie along one axis.",
            remedy="Give the provider's kv_shape one axis that counts pages.",
        )
    return axes[0]


@dataclass(frozen=True, slots=True)
class PagePlace:
    """Where a group's pages lie, in pages of one layer.

    Attributes:
        slab_pages: Pages of a slab; 0: pages are numbered as in plans.
        first: Entry of the first page of the first slab, in a layer's buffer.
        step: Entries from a page to the next.
        begin: Of the group's null page, counted from the first slab, at most 0. Bytes.
    """

    slab_pages: int = 0
    first: int = 0
    step: int = 1
    begin: int = 0


class PageNumbers:
    """From the pages of plans to the entries of layers' buffers, which page tables hold.

    Args:
        layers: All that keep state.
        groups: The page groups.
    """

    def __init__(self, layers: Sequence[CachedLayer], groups: Sequence[PageGroup]) -> None:
        self.places = _places(layers, groups)
        self.is_plain = not any(place.slab_pages for place in self.places)
        self._slab_pages = np.array([place.slab_pages for place in self.places], np.int32)
        self._first = np.array([place.first for place in self.places], np.int32)
        self._step = np.array([place.step for place in self.places], np.int32)

    def entries(self, groups: Sequence[int], pages: Sequence[int]) -> np.ndarray:
        """Return the entry of each page, int32. The null page is entry 0 in every group.

        Args:
            groups: Of each page; not read where no group has slabs.
            pages: As plans number them.
        """
        numbers = np.array(pages, np.int32)
        if self.is_plain:
            return numbers
        of = np.array(groups, np.int32)
        entries = self._first[of] + (numbers - self._slab_pages[of]) * self._step[of]
        return np.where(numbers == NULL_PAGE, 0, entries).astype(np.int32)


def _places(layers: Sequence[CachedLayer], groups: Sequence[PageGroup]) -> list[PagePlace]:
    """Lay the groups' null pages before the first slab, the last group's first."""
    places: list[PagePlace] = []
    end = 0
    for index, group in enumerate(groups):
        if not group.slab_pages:
            places.append(PagePlace())
            continue
        size = next(layer_page_bytes(each.provider) for each in layers if each.group == index)
        first = -(-(group.page_bytes - end) // size)
        end = -first * size
        places.append(PagePlace(group.slab_pages, first, group.page_bytes // size, end))
    return places
