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
SMALL_ELEMENTS = 1 << 20
"""Random tensors up to this size are drawn on the host, and are the same on every device."""
"""Standard deviation of random weights: as models are initialised, so that nothing overflows."""

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

    Raises:
        CheckpointError: Its dtype is no floating point of ours.
    """

    def __init__(self, stored: StoredTensor) -> None:
        self.layout = Layout(stored.layout, stored.group_size)
        self.shape = stored.shape
        self._stored = stored
        is_float = stored.dtype.startswith(("float", "bfloat"))
        if self.layout == Layout() and not is_float:
            raise CheckpointError(
                f"Tensor {stored.name} holds {stored.dtype}, not floating point numbers.",
                remedy="Use an unquantised checkpoint, or a GGUF file.",
            )

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end); views of the file where it has them as they are."""
        parts = self._stored.read(begin, end)
        tensors = {name: torch.from_numpy(array) for name, array in parts.items()}
        if self._stored.dtype in BIT_DTYPES:
            tensors["weight"] = tensors["weight"].view(BIT_DTYPES[self._stored.dtype])
        return tensors


class RandomSource:
    """Values that are the same on every start, made where they are used; small ones on the host.

    Args:
        name: Of the tensor; seeds its generator.
        shape: Of the tensor.
        role: Norms are ones, biases zeros.
        device: Where they are made.
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

    def read(self, begin: int, end: int) -> CanonicalWeight:
        """Return rows [begin, end), drawn anew for each range."""
        shape = (end - begin, *self.shape[1:])
        values = torch.empty(shape, dtype=self._dtype, device=self._device)
        if self._role is Role.SCALE:
            return {"weight": values.fill_(1)}
        if self._role is Role.BIAS:
            return {"weight": values.fill_(0)}
        # Devices draw different numbers from one seed; small models are to be alike on all.
        is_small = math.prod(self.shape) <= SMALL_ELEMENTS
        where = torch.device("cpu") if is_small else self._device
        generator = torch.Generator(where).manual_seed(self._seed + begin)
        if where == self._device:
            return {"weight": values.normal_(0, RANDOM_STD, generator=generator)}
        drawn = torch.empty(shape, dtype=self._dtype).normal_(0, RANDOM_STD, generator=generator)
        return {"weight": values.copy_(drawn)}


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
