"""Where the values of a weight come from: a checkpoint, or a random generator."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Protocol

import torch

from headstock.checkpoint.files import StoredTensor
from headstock.errors import CheckpointError
from headstock.graph.split import Span
from headstock.ops.linear import CanonicalWeight
from headstock.quantization.plan import Layout, Role

ELEMENTS_AT_ONCE = 1 << 22
"""Weights that are converted at a time, so that no second copy of a large tensor exists."""

RANDOM_STD = 0.02
"""Standard deviation of random weights: as models are initialised, so that nothing overflows."""

SMALL_ELEMENTS = 1 << 20
"""Random tensors up to this size are the same on every device and any number of ranks."""

FILLED = {Role.SCALE: 1.0, Role.BIAS: 0.0}
"""Roles whose values are not drawn."""

BIT_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
"""Dtypes that numpy lacks: their bits come in integers."""


class Source(Protocol):
    """The values of one tensor."""

    @property
    def layout(self) -> Layout:
        """How they are kept."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        ...

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end)."""
        ...


def read_span(source: Source, span: Span) -> Iterator[tuple[int, CanonicalWeight]]:
    """Yield the rows of ``span`` in pieces, each with where it begins within the span."""
    row_elements = max(1, math.prod(source.shape[1:]))
    step = max(1, ELEMENTS_AT_ONCE // row_elements)
    if step > ROWS_TOGETHER:
        step -= step % ROWS_TOGETHER
    for begin in range(span.begin, span.end, step):
        yield begin - span.begin, source.read(begin, min(begin + step, span.end))


ROWS_TOGETHER = 128
"""Pieces of a matrix begin at multiples of this: blocks of rows may share scales."""


class CheckpointSource:
    """A tensor of a checkpoint.

    Args:
        stored: The tensor.
        role: What it is for.

    Attributes:
        stored: Likewise.

    Raises:
        CheckpointError: Its dtype is no floating point of ours, or no whole numbers where these
            are its role.
    """

    def __init__(self, stored: StoredTensor, role: Role = Role.MATRIX) -> None:
        self.layout = Layout(stored.layout, stored.group_size)
        self.shape = stored.shape
        self.stored = stored
        kinds, what = (("float", "bfloat"), "floating point numbers")
        if role is Role.IDS:
            kinds, what = (("int", "uint"), "whole numbers")
        if self.layout == Layout() and not stored.dtype.startswith(kinds):
            raise CheckpointError(
                f"Tensor {stored.name} holds {stored.dtype}, not {what}.",
                remedy="Use an unquantised checkpoint, or a GGUF file.",
            )

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end); views of the file where it has them as they are."""
        parts = self.stored.read(begin, end)
        tensors = {name: torch.from_numpy(array) for name, array in parts.items()}
        if self.stored.dtype in BIT_DTYPES:
            tensors["weight"] = tensors["weight"].view(BIT_DTYPES[self.stored.dtype])
        return tensors


class RandomSource:
    """Values that are the same on every start.

    Small tensors are drawn whole, on the host: devices draw different numbers from one seed, and
    a small model is to be alike on all of them, on any number of ranks. Large ones are drawn where
    they are used, range by range.

    Args:
        name: Of the tensor; seeds its generator.
        shape: Of the tensor.
        role: Norms are ones, biases zeros, whole numbers count up along the last axis.
        device: Where they are used.
        dtype: Of the values.
    """

    layout = Layout()

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        role: Role,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.shape = shape
        self._role, self._device, self._dtype = role, device, dtype
        self._seed = zlib.crc32(name.encode())
        is_small = role not in (*FILLED, Role.IDS) and math.prod(shape) <= SMALL_ELEMENTS
        self._whole = self._draw(shape, torch.device("cpu"), self._seed) if is_small else None

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end) on the device; of large tensors, drawn for this range."""
        shape = (end - begin, *self.shape[1:])
        if self._role is Role.IDS:
            return {"weight": torch.arange(shape[-1], device=self._device).expand(shape)}
        if self._role in FILLED:
            value = FILLED[self._role]
            return {"weight": torch.full(shape, value, dtype=self._dtype, device=self._device)}
        if self._whole is not None:
            return {"weight": self._whole[begin:end].to(self._device, copy=True)}
        return {"weight": self._draw(shape, self._device, self._seed + begin)}

    def _draw(self, shape: tuple[int, ...], device: torch.device, seed: int) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        values = torch.empty(shape, dtype=self._dtype, device=device)
        return values.normal_(0, RANDOM_STD, generator=generator)


def is_equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same values, kept alike."""
    if (one.shape, one.layout, one.group_size) != (other.shape, other.layout, other.group_size):
        return False
    sources = CheckpointSource(one), CheckpointSource(other)
    pieces = zip(*(read_span(source, Span(0, one.shape[0])) for source in sources), strict=True)
    return all(
        torch.equal(part[name].to(torch.float64), rest[name].to(torch.float64))
        for (_, part), (_, rest) in pieces
        for name in part
    )
