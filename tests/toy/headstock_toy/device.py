"""The toy's device: the host's processor, made to behave as oddly as a device may."""

from __future__ import annotations

import math
import weakref
from bisect import bisect_left
from collections.abc import Callable

import torch
from torch import Tensor

from headstock.plugins.device import DeviceFacts, GraphKey, Memory
from headstock_toy.graphs import ToyGraph

TOTAL_BYTES = 64 << 20
POISON = 0x55
"""What a host buffer holds, byte by byte, until a transfer into it is waited for."""


class OddPolicy:
    """Pads steps to sizes that divide nothing; larger ones run eagerly."""

    rows = (3, 7, 17, 33)
    tokens = (13, 37, 101, 257)

    def bucket(self, num_tokens: int, num_rows: int, is_uniform: bool) -> tuple[int, int] | None:
        row, token = bisect_left(self.rows, num_rows), bisect_left(self.tokens, num_tokens)
        if row == len(self.rows):
            return None
        if is_uniform:
            return self.rows[row], self.rows[row]
        return None if token == len(self.tokens) else (self.tokens[token], self.rows[row])

    def warm_up(self, max_tokens: int, max_rows: int) -> list[tuple[int, int, bool]]:
        return [(rows, rows, True) for rows in self.rows[:1] if rows <= max_rows]


class LateTransfer:
    """A copy whose destination is garbage until it is waited for."""

    def __init__(self, source: Tensor, into: Tensor) -> None:
        self._taken, self._into = source.clone(), into
        into.view(torch.uint8).fill_(POISON)

    def wait(self) -> Tensor:
        return self._into.copy_(self._taken)


class ToyDevice:
    """64 MiB, two steps in flight, everything captured."""

    name = "toy"
    facts = DeviceFacts(
        shares_host_memory=True, default_slots=64, default_step_tokens=512, captures_on_use=True
    )
    depth = 2
    num_threads = 1
    default_dtype = torch.float32
    capabilities = frozenset({"toy"})

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.graph_policy = OddPolicy()
        self._taken = self._peak = 0
        self.is_closed = False

    def memory(self) -> Memory:
        return Memory(total=TOTAL_BYTES, free=TOTAL_BYTES - self._taken, peak=self._peak)

    def reset_peak(self) -> None:
        self._peak = self._taken

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        num_bytes = math.prod(shape) * dtype.itemsize
        assert num_bytes <= self.memory().free, (
            f"{num_bytes} bytes asked, {self.memory().free} free"
        )
        taken = torch.empty(shape, dtype=dtype)
        taken.view(-1).view(torch.uint8).fill_(POISON)
        self._taken += num_bytes
        self._peak = max(self._peak, self._taken)
        weakref.finalize(taken.untyped_storage(), self._give_back, num_bytes)
        return taken

    def _give_back(self, num_bytes: int) -> None:
        self._taken -= num_bytes

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def fetch(self, source: Tensor, into: Tensor) -> LateTransfer:
        return LateTransfer(source, into)

    def capture(self, key: GraphKey, step: Callable[[], None]) -> ToyGraph:
        if key.kind != "draws":  # those come at the rows of a captured forward pass
            expected = self.graph_policy.bucket(key.num_tokens, key.num_rows, key.kind == "uniform")
            assert expected == (key.num_tokens, key.num_rows), f"{key} is not a bucket"
        return ToyGraph(key, step)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True
