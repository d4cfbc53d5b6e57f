"""The layers' pages: their bytes, their memory, and copies among them, by page group."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from headstock.errors import UnsupportedError
from headstock.ops.attention import CacheProvider
from headstock.plugins.device import Device
from headstock.runner.step import CachedLayer
from headstock.runner.upload import HostArrays
from headstock.wire.steps import NULL_PAGE, PageCopies, PageGroup


def page_bytes(layers: Sequence[CachedLayer], group: int) -> int:
    """Return the bytes of one page of ``group`` over all its layers."""
    return sum(
        _bytes_of(layer.provider, 2) - _bytes_of(layer.provider, 1)
        for layer in layers
        if layer.group == group
    )


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
        arrays: Carries the copies' page numbers.
        layers: Each gets its buffer as ``kv``.
        groups: How many pages each group has, the null page among them.
    """

    def __init__(
        self,
        device: Device,
        arrays: HostArrays,
        layers: Sequence[CachedLayer],
        groups: Sequence[PageGroup],
    ) -> None:
        self._arrays = arrays
        self._layers = [(layer, page_axis(layer.provider)) for layer in layers]
        for layer, axis in self._layers:
            shape = layer.provider.kv_shape(groups[layer.group].num_pages)
            layer.kv = device.empty(shape, layer.provider.layout.dtype)
            layer.kv.narrow(axis, NULL_PAGE, 1).zero_()

    def copy(self, copies: PageCopies) -> None:
        """Queue copies of whole pages."""
        for group in sorted(set(copies.groups)):
            places = [i for i, of in enumerate(copies.groups) if of == group]
            columns = [[c[i] for i in places] for c in (copies.sources, copies.destinations)]
            sources, destinations = self._arrays.send(np.array(columns, np.int64))
            for layer, axis in self._layers:
                if layer.group == group:
                    layer.kv.index_copy_(axis, destinations, layer.kv.index_select(axis, sources))
