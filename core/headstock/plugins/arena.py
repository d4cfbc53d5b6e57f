"""Memory of captured steps: tensors over addresses, reused as they die.

For backends of the host's processor that capture steps by themselves; see :mod:`.captures`.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from headstock.errors import UnsupportedError

SEGMENT_BYTES = 32 << 20
"""The arena grows by this, or by a tensor that is larger."""
ALIGNMENT = 64
"""A cache line, so that threads never share one for different tensors. Bytes."""


def tensor_at(
    address: int, shape: tuple[int, ...], dtype: torch.dtype, on_release: Callable[[], object]
) -> Tensor:
    """Return a tensor over ``address``; ``on_release`` is called when its storage is freed.

    Views share the storage: memory is released when the last of them has gone.

    Args:
        address: Of memory for all of it, on the host.
        shape: Of the tensor.
        dtype: Of the tensor.
        on_release: Called once.
    """
    count = math.prod(shape)
    if count == 0:
        on_release()
        return torch.empty(shape, dtype=dtype)
    owner = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    weakref.finalize(owner, on_release).atexit = False
    return torch.frombuffer(owner, dtype=dtype, count=count).view(shape)


class StepArena:
    """Memory that the tensors of captured steps come from, reused as they die.

    Steps run one after another, so all of them share it: only what outlives its capture keeps
    others away.

    Args:
        allocate: Takes bytes from the system; returns their address, or nothing.
        free: Gives them back; takes the address and how many there are.
    """

    def __init__(
        self, allocate: Callable[[int], int | None], free: Callable[[int, int], object]
    ) -> None:
        self._allocate, self._free_segment = allocate, free
        self._segments: list[tuple[int, int]] = []
        self._free: list[tuple[int, int]] = []  # (address, bytes), by address, none adjacent

    @property
    def num_bytes(self) -> int:
        """How much it has taken from the system."""
        return sum(size for _, size in self._segments)

    def holds(self, address: int) -> bool:
        """Whether ``address`` is in memory of the arena."""
        return any(begin <= address < begin + size for begin, size in self._segments)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return uninitialised memory, the arena's again when the tensor's storage is freed."""
        wanted = math.prod(shape) * dtype.itemsize
        size = -(-max(1, wanted) // ALIGNMENT) * ALIGNMENT
        address = self._take(size)
        return tensor_at(address, shape, dtype, lambda: self._give_back(address, size))

    def close(self) -> None:
        """Free the memory; no tensor may be used any more."""
        for address, size in self._segments:
            self._free_segment(address, size)
        self._segments.clear()
        self._free.clear()

    def _take(self, size: int) -> int:
        fits = [(held, i) for i, (_, held) in enumerate(self._free) if held >= size]
        if not fits:
            self._grow(size)
            return self._take(size)
        held, i = min(fits)
        address = self._free[i][0]
        if held == size:
            del self._free[i]
        else:
            self._free[i] = (address + size, held - size)
        return address

    def _grow(self, size: int) -> None:
        length = max(size, SEGMENT_BYTES)
        address = self._allocate(length)
        if not address:
            raise UnsupportedError(
                f"There is no room for {length / 2**20:.0f} MiB of step memory.",
                remedy="Lower --memory-fraction or --chunked-prefill-size.",
            )
        self._segments.append((address, length))
        self._give_back(address, length)

    def _give_back(self, address: int, size: int) -> None:
        if not self._segments:
            return  # Closed already.
        i = bisect.bisect(self._free, (address, 0))
        if i < len(self._free) and self._free[i][0] == address + size:
            size += self._free[i][1]
            del self._free[i]
        if i and sum(self._free[i - 1]) == address:
            address, size = self._free[i - 1][0], size + self._free[i - 1][1]
            i -= 1
            del self._free[i]
        self._free.insert(i, (address, size))
