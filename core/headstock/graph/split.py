"""Which part of a tensor a rank holds."""

from __future__ import annotations

from dataclasses import dataclass

from headstock.errors import ConfigError
from headstock.ops.communication import Group


@dataclass(frozen=True, slots=True)
class Span:
    """Entries [begin, end) of an axis."""

    begin: int
    end: int

    @property
    def size(self) -> int:
        """How many there are."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Gap:
    """Outputs that no row of a checkpoint's matrix makes: zeros.

    Attributes:
        size: How many.
    """

    size: int


def split_evenly(name: str, size: int, tp: Group, *, unit: int = 1) -> Span:
    """Return this rank's share of ``size`` entries, whole units each.

    Raises:
        ConfigError: The units do not divide among the ranks.
    """
    num_units = size // unit
    if size % unit or num_units % tp.size:
        what = f"{num_units} heads of {unit}" if unit > 1 else f"{size} features"
        raise ConfigError(
            f"tp_size is {tp.size}, and {name} has {what}, which do not divide by it.",
            remedy=f"Set --tp-size to a divisor of {num_units}.",
        )
    share = num_units // tp.size * unit
    return Span(tp.rank * share, (tp.rank + 1) * share)


def split_or_replicate(name: str, size: int, tp: Group, *, unit: int) -> Span:
    """Return this rank's share; of fewer units than ranks, the one that its neighbours share.

    Raises:
        ConfigError: Neither divides the other.
    """
    num_units = size // unit
    if num_units >= tp.size:
        return split_evenly(name, size, tp, unit=unit)
    if tp.size % num_units:
        raise ConfigError(
            f"tp_size is {tp.size}, and {name} has {num_units} heads of {unit}: neither divides the"
            " other.",
            remedy=f"Set --tp-size to a divisor or a multiple of {num_units}.",
        )
    first = tp.rank // (tp.size // num_units) * unit
    return Span(first, first + unit)


def split_vocabulary(size: int, tp: Group) -> Span:
    """Return the ids that this rank holds: as many on each, the last ones maybe past ``size``."""
    share = -(-size // tp.size)
    return Span(tp.rank * share, (tp.rank + 1) * share)
