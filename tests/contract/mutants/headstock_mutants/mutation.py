"""What a mutation is: one thing that a plugin does otherwise, and the tests that see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headstock.ops.base import Requires

Run = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One thing wrong.

    Attributes:
        name: Of the function that makes it.
        tests: Tests of the kit, as ``file::test[parameters]`` without ``test_``, of which one must
            fail.
        op: The op that it changes; "": none.
        run: From the right implementation, or builder, of ``op`` to the wrong one.
        requires: From right to wrong requirements of ``op``.
        device: From the right device to the wrong one.
        group: From the right group to the wrong one.
        probe: From the right answer of the probe to the wrong one.
        is_quick: Whether the ordinary tests try it.
    """

    name: str
    tests: tuple[str, ...]
    op: str = ""
    run: Callable[[Run], Run] | None = None
    requires: Callable[[Requires], Requires] | None = None
    device: Callable[[Any], Any] | None = None
    group: Callable[[Any], Any] | None = None
    probe: Callable[[Any], Any] | None = None
    is_quick: bool = False


MUTATIONS: dict[str, Mutation] = {}


def equals(op: str, dtype: str = "float32") -> str:
    """Return the test that compares an op with its reference."""
    return f"3_ops::it_equals_its_reference[{op}-{dtype}]"


def mutates(kind: str, *tests: str, op: str = "", quick: bool = False) -> Callable[[Any], Any]:
    """Enter the decorated function as a mutation of ``kind``, a field of :class:`Mutation`."""

    def enter(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        name = change.__name__
        assert name not in MUTATIONS, f"two mutations {name}"
        given: dict[str, Any] = {kind: change}
        seen = tests or (equals(op),)
        MUTATIONS[name] = Mutation(name=name, tests=seen, op=op, is_quick=quick, **given)
        return change

    return enter


def of_op(op: str, *tests: str, quick: bool = False) -> Callable[[Any], Any]:
    """Enter a mutation of an implementation, seen by ``tests``, or by its comparison."""
    return mutates("run", *tests, op=op, quick=quick)


class Changed:
    """An object with some methods changed; all else is the right one's."""

    def __init__(self, right: Any, **changes: Any) -> None:
        self.__dict__.update(changes)
        self._right = right

    def __getattr__(self, name: str) -> Any:
        return getattr(self._right, name)


class Product(Changed):
    """A product with some methods changed, ``multiply`` its call."""

    def __call__(self, *args: Any) -> Any:
        return self.__dict__.get("multiply", self._right)(*args)


def built(**methods: Callable[..., Any]) -> Callable[[Run], Run]:
    """Return a mutation of a builder: ``method(right, spec)`` makes each changed method."""

    def mutation(build: Run) -> Run:
        def mutated(spec: Any, device: Any) -> Any:
            right = build(spec, device)
            return Product(right, **{name: make(right, spec) for name, make in methods.items()})

        return mutated

    return mutation
