"""Offering implementations where they are: each says which op it computes, and what it requires."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from headstock.ops.base import Op, OpRegistry, Requires

Run = TypeVar("Run", bound=Callable[..., Any])

OFFERS = "headstock_offers"


def computes(op: Op[..., Any], *requires: Requires) -> Callable[[Run], Run]:
    """Declare that the decorated method, or class for a built op, computes ``op``.

    Args:
        op: The op; its docstring says what is computed.
        requires: What it needs, one way or another; nothing where none is given.
    """

    def declare(run: Run) -> Run:
        setattr(run, OFFERS, tuple((op, each) for each in requires or (Requires(),)))
        return run

    return declare


def offers_of(run: object) -> tuple[tuple[Op[..., Any], Requires], ...]:
    """Return the ops that ``run`` computes, each with what it requires."""
    return getattr(run, OFFERS, ())


def offer(registry: OpRegistry, provider: str, *places: object) -> None:
    """Offer what is declared in ``places``: classes of built ops, or objects by their methods.

    Raises:
        PluginError: A signature is not its op's.
    """
    for place in places:
        names = () if isinstance(place, type) else vars(type(place))
        runs: list[Any] = [place, *(getattr(place, name) for name in names)]
        for run in runs:
            for op, requires in offers_of(run):
                registry.add(op, provider, run, requires=requires)
