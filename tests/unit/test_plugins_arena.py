"""Memory of captured steps, over addresses that a backend allocates."""

from __future__ import annotations

import ctypes

import pytest
import torch

from headstock.errors import UnsupportedError
from headstock.plugins.arena import ALIGNMENT, SEGMENT_BYTES, StepArena


class System:
    """Gives out memory, and remembers what it has given."""

    def __init__(self, limit: int = 1 << 40) -> None:
        self.given: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self._limit = limit

    def allocate(self, size: int) -> int | None:
        if size > self._limit:
            return None
        memory = ctypes.create_string_buffer(size)
        self.given[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def free(self, address: int, size: int) -> None:
        assert len(self.given.pop(address)) == size


def test_memory_of_a_dead_tensor_is_the_next_ones() -> None:
    system = System()
    arena = StepArena(system.allocate, system.free)
    first = arena.empty((3, 5), torch.float32)
    view, address = first[1:], first.data_ptr()
    del first
    second = arena.empty((3, 5), torch.float32)
    assert second.data_ptr() == address + ALIGNMENT  # A view keeps the first one's.
    del view
    assert arena.empty((2,), torch.int64).data_ptr() == address
    assert arena.num_bytes == SEGMENT_BYTES
    assert arena.holds(address)
    assert not arena.holds(torch.zeros(1).data_ptr())
    arena.close()
    assert not system.given


def test_a_system_without_memory_is_an_error() -> None:
    system = System(limit=0)
    with pytest.raises(UnsupportedError, match="no room for 32 MiB"):
        StepArena(system.allocate, system.free).empty((1,), torch.float32)
