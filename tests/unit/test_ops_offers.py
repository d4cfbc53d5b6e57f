"""Ops that are declared beside what computes them."""

from __future__ import annotations

import pytest

from headstock.errors import PluginError
from headstock.ops.base import Op, OpRegistry, Requires
from headstock.ops.offers import computes, offer, offers_of

NARROW, WIDE = Requires(dtypes=frozenset({"float16"})), Requires(dtypes=frozenset({"float32"}))


def multiply(x: int, *, by: int) -> int:
    return x * by


def build(spec: int, device: int) -> object:
    return object()


# Not declared by the decorator: they would be among the ops of every test.
twice_offered = Op("twice_offered", multiply)
built_offered = Op("built_offered", build, is_built=True)


class Kernels:
    def __init__(self, bias: int) -> None:
        self._bias = bias

    @computes(twice_offered, NARROW, WIDE)
    def run(self, x: int, *, by: int) -> int:
        return x * by + self._bias

    def other(self) -> None:
        raise AssertionError("it computes no op")


@computes(built_offered)
class Builder:
    def __init__(self, spec: int, device: int) -> None:
        self.spec = spec


def test_methods_are_offered_bound_and_once_for_each_requirement() -> None:
    registry = OpRegistry()
    offer(registry, "acme", Kernels(3), Builder)
    *own, reference = registry.offered(twice_offered)
    assert [found.requires for found in own] == [NARROW, WIDE]
    assert {found.run(2, by=5) for found in own} == {13}
    assert reference.run(2, by=5) == 10
    (builder, _) = registry.offered(built_offered)
    assert (builder.provider, builder.run, builder.requires) == ("acme", Builder, Requires())


def test_what_declares_nothing_offers_nothing() -> None:
    registry = OpRegistry()
    offer(registry, "acme", object(), int)
    assert len(registry.offered(twice_offered)) == 1
    assert offers_of(Kernels.other) == ()


def test_another_signature_is_refused() -> None:
    class Wrong:
        @computes(twice_offered)
        def run(self, x: int, *, times: int) -> int:
            return x * times

    with pytest.raises(PluginError, match="times"):
        offer(OpRegistry(), "acme", Wrong())
