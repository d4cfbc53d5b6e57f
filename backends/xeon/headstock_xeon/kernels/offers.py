"""How kernels are offered: each names the op that it computes and what it requires, where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from headstock.ops.base import Op, Requires, Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from headstock_xeon.device import XeonDevice
    from headstock_xeon.stream import Word

Run = TypeVar("Run", bound=Callable[..., Any])

FLOAT32 = Requires(dtypes=frozenset({"float32"}), capabilities=frozenset({"avx2"}))
INT32 = replace(FLOAT32, dtypes=frozenset({"int32"}))
"""Ops on the tables of a step have no activations; their dtype is that of their numbers."""
EIGHTS = Sizes(multiple_of=8)
"""Numbers of a vector."""
OFFERS = "xeon_offers"


def computes(op: Op[..., Any], *requires: Requires) -> Callable[[Run], Run]:
    """Declare that the decorated method, or class for a built op, computes ``op``.

    Args:
        op: The op; its docstring says what is computed.
        requires: What it needs, one way or another; by itself float32 activations.
    """

    def declare(run: Run) -> Run:
        setattr(run, OFFERS, tuple((op, each) for each in requires or (FLOAT32,)))
        return run

    return declare


def offers_of(run: object) -> tuple[tuple[Op[..., Any], Requires], ...]:
    """Return the ops that ``run`` computes, each with what it requires."""
    return getattr(run, OFFERS, ())


class Kernels:
    """Function ops bound to a device's stream: a method each."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream

    def _like(self, x: Tensor, kernel: str, *given: Word, then: Iterable[int] = ()) -> Tensor:
        """Run a kernel that fills a tensor like ``x``, which follows ``given`` with its shape."""
        y = self._stream.empty(x.shape)
        self._stream.emit(kernel, *given, y, *y.shape, *then)
        return y

    def offers(self) -> Iterator[tuple[Op[..., Any], Requires, Callable[..., Any]]]:
        """Yield the ops that methods compute, what each requires, and the method."""
        for name in vars(type(self)):
            run = getattr(self, name)
            for op, requires in offers_of(run):
                yield op, requires, run
