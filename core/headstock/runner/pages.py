"""The layers' pages: their memory, and copies among them, by page group."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headstock.ops.attention import page_format_of
from headstock.plugins.device import Device
from headstock.runner.arena import PageNumbers, layer_page_bytes, page_axis
from headstock.runner.step import CachedLayer
from headstock.runner.upload import HostArrays
from headstock.wire.steps import NULL_PAGE, PageCopies, PageGroup

ARENA_ALIGNMENT = 4096
"""Where the first slab begins. Bytes."""


class PageStore:
    """The pages of every layer.

    Args:
        device: Where they live.
        arrays: Carries the copies' page numbers.
        layers: Each gets its buffer as ``kv``.
        groups: How many pages each group has, the null page among them.
        numbers: Where the pages of plans lie.

    Attributes:
        num_bytes: That the pages take now.
    """

    def __init__(
        self,
        device: Device,
        arrays: HostArrays,
        layers: Sequence[CachedLayer],
        groups: Sequence[PageGroup],
        numbers: PageNumbers,
    ) -> None:
        self._arrays = arrays
        self._numbers = numbers
        self._layers = [(layer, page_axis(layer.provider)) for layer in layers]
        self._device, self._groups = device, groups
        self.num_bytes = 0
        self.make()

    def make(self) -> None:
        """Make the pages; what they hold is undefined, but for the null pages."""
        self.num_bytes = 0
        self._allocate(self._groups)
        for layer, axis in self._layers:
            for tensor in page_format_of(layer.provider).tensors_of(layer.kv):
                tensor.narrow(axis, NULL_PAGE, 1).zero_()

    def drop(self) -> int:
        """Forget the pages' memory until :meth:`make`; returns its bytes."""
        for layer, _ in self._layers:
            layer.kv = self._device.empty((0,), page_format_of(layer.provider).dtype)
        dropped, self.num_bytes = self.num_bytes, 0
        return dropped

    def copy(self, copies: PageCopies) -> None:
        """Queue copies of whole pages."""
        entries = [
            self._numbers.entries(copies.groups, pages)
            for pages in (copies.sources, copies.destinations)
        ]
        for group in sorted(set(copies.groups)):
            places = [i for i, of in enumerate(copies.groups) if of == group]
            columns = np.array([of_pages[places] for of_pages in entries], np.int64)
            sources, destinations = self._arrays.send_padded(*columns)
            for layer, axis in self._layers:
                if layer.group != group:
                    continue
                for tensor in page_format_of(layer.provider).tensors_of(layer.kv):
                    tensor.index_copy_(axis, destinations, tensor.index_select(axis, sources))

    def _take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        taken = self._device.empty(shape, dtype)
        self.num_bytes += taken.nbytes
        return taken

    def _allocate(self, groups: Sequence[PageGroup]) -> None:
        places = self._numbers.places
        before = -min(place.begin for place in places)
        before = -(-before // ARENA_ALIGNMENT) * ARENA_ALIGNMENT  # where the first slab begins
        slabs = [
            (group.num_pages - group.slab_pages) * group.page_bytes
            for group in groups
            if group.slab_pages
        ]
        arena = self._take((before + slabs[0],), torch.uint8) if slabs else None
        counts = [0] * len(groups)
        for layer, _ in self._layers:
            place, provider = places[layer.group], layer.provider
            if arena is None or not place.slab_pages:
                shape = provider.kv_shape(groups[layer.group].num_pages)
                layer.kv = self._take(shape, page_format_of(provider).dtype)
                continue
            size = layer_page_bytes(provider)
            begin = before + place.begin + counts[layer.group] * size
            counts[layer.group] += 1
            num_entries = (len(arena) - begin) // size
            layer.kv = (
                arena[begin : begin + num_entries * size]
                .view(page_format_of(provider).dtype)
                .view(provider.kv_shape(num_entries))
            )
