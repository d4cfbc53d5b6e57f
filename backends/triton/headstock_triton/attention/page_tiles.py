"""Descriptors of layers' pages, which the copy engine reads tiles by."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary


class PageTiles:
    """Makes descriptors once a layer. They hold its pages, and are forgotten with them.

    A layer's pages are one tensor until the engine sleeps; what still held it then would keep the
    pages' memory.
    """

    def __init__(self) -> None:
        self._of = WeakTensorKeyDictionary()

    def get(self, kv: Tensor, key: Hashable, make: Callable[[Tensor], Any]) -> Any:
        """Return what ``make`` makes of ``kv``, made at the first call with ``key``."""
        made = self._of.get(kv)
        if made is None:
            made = self._of[kv] = dict[Hashable, Any]()
        if key not in made:
            made[key] = make(kv.detach())  # a view would hold the tensor itself
        return made[key]
