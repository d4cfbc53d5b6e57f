"""The layers' pages: their bytes, their memory, and copies among them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headstock.errors import UnsupportedError
from headstock.ops.attention import CacheProvider
from headstock.plugins.device import Device
from headstock.runner.mail import Mail
from headstock.runner.program import CachedLayer
from headstock.wire.steps import NULL_PAGE, PageCopies


def page_bytes(layers: Sequence[CachedLayer]) -> int:
    """Return the bytes of one page over all layers."""
    return sum(_bytes_of(layer.provider, 2) - _bytes_of(layer.provider, 1) for layer in layers)


def _bytes_of(provider: CacheProvider, num_pages: int) -> int:
    return math.prod(provider.kv_shape(num_pages)) * provider.layout.dtype.itemsize


def page_axis(provider: CacheProvider) -> int:
    """Return along which axis of its buffer a provider lays out pages.

    Raises:
        UnsupportedError: No single axis grows by one a page.
    """
    one, two = provider.kv_shape(1), provider.kv_shape(2)
    axes = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
    if len(axes) != 1 or two[axes[0]] - one[axes[0]] != 1:
        raise UnsupportedError(
            f"Layout {provider.layout.tag!r} has pages of shape {one} and {two} for one and two"
            " pages; pages must lie along one axis.",
            remedy="Give the layout's kv_shape one axis that counts pages.",
        )
    return axes[0]


class PageStore:
    """The pages of every layer.

    Args:
        device: Where they live.
        mail: Carries the copies' page numbers.
        layers: Each gets its buffer as ``kv``.
        num_pages: Pages, the null page among them.
    """

    def __init__(
        self, device: Device, mail: Mail, layers: Sequence[CachedLayer], num_pages: int
    ) -> None:
        self._mail = mail
        self._layers = [(layer, page_axis(layer.provider)) for layer in layers]
        for layer, axis in self._layers:
            shape = layer.provider.kv_shape(num_pages)
            layer.kv = device.empty(shape, layer.provider.layout.dtype)
            layer.kv.narrow(axis, NULL_PAGE, 1).zero_()

    def copy(self, copies: PageCopies) -> None:
        """Queue copies of whole pages."""
        assert not any(copies.groups), f"page groups {sorted(set(copies.groups))}: there is only 0"
        pages = self._mail.send(np.array((copies.sources, copies.destinations), np.int64))
        sources, destinations = pages
        for layer, axis in self._layers:
            layer.kv.index_copy_(axis, destinations, layer.kv.index_select(axis, sources))
