"""What kernels of function ops have in common, and what most of them require."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from headstock.ops.base import Requires, Sizes
from headstock_xeon.device import XeonDevice
from headstock_xeon.stream import Word

FLOAT32 = Requires(dtypes=frozenset({"float32"}), capabilities=frozenset({"avx2"}))
INT32 = replace(FLOAT32, dtypes=frozenset({"int32"}))
"""Ops on the tables of a step have no activations; their dtype is that of their numbers."""
EIGHTS = Sizes(multiple_of=8)
"""Numbers of a vector."""


class Kernels:
    """Function ops bound to a device's stream: a method each."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream

    def _like(self, x: Tensor, kernel: str, *given: Word, then: Iterable[int] = ()) -> Tensor:
        """Run a kernel that fills a tensor like ``x``, which follows ``given`` with its shape."""
        shape = tuple(x.shape)  # PyTorch reads a Size more slowly.
        y = self._stream.empty(shape)
        self._stream.emit(kernel, *given, y, *shape, *then)
        return y
