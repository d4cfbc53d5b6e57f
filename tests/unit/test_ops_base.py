"""Choosing implementations, without a tensor."""

from __future__ import annotations

import subprocess
import sys

import pytest

from headstock.errors import ConfigError, PluginError, UnsupportedError
from headstock.ops.base import (
    ALL_OPS,
    REFERENCE,
    Op,
    OpRegistry,
    Requires,
    Resolver,
    Sizes,
    Spec,
    Tolerance,
    op,
)


class Device:
    torch_device = None
    capabilities = frozenset({"swift"})
    num_threads = 1


def double(x, *, times):
    return x * 2 * times


DOUBLE = Op("double", double, features=frozenset({"signed"}))
PLAIN = Spec(dtype="float32", sizes={"size": 64})


@pytest.fixture
def registry() -> OpRegistry:
    return OpRegistry()


def resolved(registry: OpRegistry, spec: Spec = PLAIN, **forced: str):
    resolver = Resolver(registry, Device(), forced)
    resolver.resolve(DOUBLE, spec)
    return resolver.resolutions[-1]


def offer(registry: OpRegistry, provider: str, **details) -> None:
    registry.add(DOUBLE, provider, lambda x, *, times: x, **details)


def test_the_reference_computes_what_nobody_offers(registry: OpRegistry) -> None:
    assert resolved(registry).provider == REFERENCE


def test_the_highest_priority_wins(registry: OpRegistry) -> None:
    offer(registry, "slow", priority=50)
    offer(registry, "fast", priority=60)
    assert resolved(registry).provider == "fast"


def test_equal_priorities_are_settled_by_name(registry: OpRegistry) -> None:
    offer(registry, "beta")
    offer(registry, "alpha")
    assert resolved(registry).provider == "alpha"


@pytest.mark.parametrize(
    ("requires", "reason"),
    [
        (Requires(dtypes=frozenset({"bfloat16"})), "dtype float32 not in ['bfloat16']"),
        (Requires(layouts=frozenset({"dense"})), "layout none not in ['dense']"),
        (Requires(page_dtypes=frozenset({"int8"})), "page dtype none not in ['int8']"),
        (Requires(page_formats=frozenset({"own"})), "page format none not in ['own']"),
        (Requires(architectures=frozenset({"A"})), "architecture none not in ['A']"),
        (Requires(capabilities=frozenset({"strong"})), "device lacks strong"),
        (Requires(sizes={"size": Sizes(multiple_of=48)}), "size 64 not a multiple of 48"),
        (Requires(sizes={"size": Sizes(at_most=32)}), "size 64 over 32"),
        (Requires(sizes={"size": Sizes(at_least=65)}), "size 64 under 65"),
        (Requires(sizes={"size": Sizes(only=frozenset({80}))}), "size 64 not in [80]"),
    ],
)
def test_whoever_refuses_is_passed_over_with_the_reason(
    registry: OpRegistry, requires: Requires, reason: str
) -> None:
    offer(registry, "picky", requires=requires)
    resolution = resolved(registry)
    assert resolution.provider == REFERENCE
    assert resolution.passed_over == (("picky", reason),)


@pytest.mark.parametrize("what", ["layout", "page_dtype", "page_format", "architecture"])
def test_what_is_asked_by_name_is_compared_under_its_own_word_or_as_before_2_3(
    registry: OpRegistry, what: str
) -> None:
    offer(registry, "newer", requires=Requires(**{f"{what}s": frozenset({"this"})}), priority=60)
    offer(registry, "older", requires=Requires(layouts=frozenset({"that"})), priority=50)
    resolver = Resolver(registry, Device())
    for name in ("this", "that"):
        resolver.resolve(DOUBLE, Spec(dtype="float32", **{what: name}))
    assert [each.provider for each in resolver.resolutions] == ["newer", "older"]


def test_a_size_that_is_not_asked_is_no_reason(registry: OpRegistry) -> None:
    offer(registry, "picky", requires=Requires(sizes={"other": Sizes(at_most=1)}))
    assert resolved(registry).provider == "picky"


def test_an_undeclared_feature_is_refused(registry: OpRegistry) -> None:
    offer(registry, "old")
    spec = Spec(dtype="float32", features=frozenset({"signed"}))
    resolution = resolved(registry, spec)
    assert resolution.provider == REFERENCE
    assert resolution.passed_over == (("old", "lacks features: signed"),)


def test_a_feature_that_nobody_knows_is_an_error(registry: OpRegistry) -> None:
    spec = Spec(dtype="float32", features=frozenset({"of_tomorrow"}))
    with pytest.raises(UnsupportedError, match="of_tomorrow"):
        resolved(registry, spec)


def test_a_forced_provider_beats_priorities(registry: OpRegistry) -> None:
    offer(registry, "fast")
    assert resolved(registry, all=REFERENCE).provider == REFERENCE


def test_a_forced_provider_that_refuses_is_an_error_with_its_reason(registry: OpRegistry) -> None:
    offer(registry, "picky", requires=Requires(dtypes=frozenset({"float16"})))
    ALL_OPS["double"] = DOUBLE
    try:
        with pytest.raises(UnsupportedError, match="picky: dtype float32"):
            resolved(registry, double="picky")
        with pytest.raises(ConfigError, match="Did you mean 'picky'"):
            resolved(registry, double="pickle")
    finally:
        del ALL_OPS["double"]


def test_forcing_an_op_that_does_not_exist_is_an_error(registry: OpRegistry) -> None:
    with pytest.raises(ConfigError, match="which is not an op"):
        Resolver(registry, Device(), {"triple": REFERENCE})


def test_all_means_those_who_offer_it_and_the_reference_else(registry: OpRegistry) -> None:
    offer(registry, "fast")
    assert resolved(registry, all="elsewhere").provider == REFERENCE


def test_equal_specs_get_the_same_callable(registry: OpRegistry) -> None:
    resolver = Resolver(registry, Device())
    first = resolver.resolve(DOUBLE, Spec(dtype="float32", sizes={"a": 1, "b": 2}))
    assert resolver.resolve(DOUBLE, Spec(dtype="float32", sizes={"b": 2, "a": 1})) is first
    assert len(resolver.resolutions) == 1


def test_another_signature_is_refused_when_it_is_offered(registry: OpRegistry) -> None:
    with pytest.raises(PluginError, match=r"double takes \(x, factor\), the op takes \(x, times\)"):
        registry.add(DOUBLE, "odd", lambda x, *, factor: x)


def test_a_keyword_with_a_default_may_be_left_out(registry: OpRegistry) -> None:
    def grown(x: int, *, times: int, offset: int = 0) -> int:
        return x * times + offset

    op = Op("grown", grown)
    registry.add(op, "older", lambda x, *, times: x)
    with pytest.raises(PluginError, match="grown takes"):
        registry.add(op, "odd", lambda x, *, offset=0: x)


def test_the_same_offer_twice_is_refused(registry: OpRegistry) -> None:
    offer(registry, "fast")
    with pytest.raises(PluginError, match="twice"):
        offer(registry, "fast")


def test_a_provider_may_offer_for_different_requirements(registry: OpRegistry) -> None:
    offer(registry, "fast", requires=Requires(dtypes=frozenset({"float16"})))
    offer(registry, "fast", requires=Requires(dtypes=frozenset({"float32"})))
    assert resolved(registry).provider == "fast"


def test_an_op_is_declared_once() -> None:
    op()(double)
    try:
        assert "tests::double" in ALL_OPS
        with pytest.raises(PluginError, match=r"declared twice: in tests\.unit"):
            op()(double)
    finally:
        del ALL_OPS["tests::double"]


def test_a_tolerance_is_looked_up_by_dtype() -> None:
    assert Tolerance(by_dtype={"float32": (1e-4, 1e-5)}).of("float32") == (1e-4, 1e-5)


def test_contracts_of_ops_import_no_torch() -> None:
    code = (
        "import sys, headstock.ops, headstock.ops.base, headstock.ops.attention,"
        " headstock.ops.linear, headstock.ops.communication, headstock.ops.device,"
        " headstock.plugins.reference; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ops_of_other_packages_have_names_of_their_own(registry: OpRegistry) -> None:
    def silu_and_mul(gate_up_TG):
        return gate_up_TG

    silu_and_mul.__module__ = "stranger.layers"
    try:
        theirs = op()(silu_and_mul)
        assert theirs.name == "stranger::silu_and_mul"
        forced = {theirs.name: "reference"}
        Resolver(registry, Device(), forced).check_forced()
    finally:
        del ALL_OPS["stranger::silu_and_mul"]
    # A model's ops are declared when its class is imported: only then is a name known to be none.
    resolver = Resolver(registry, Device(), forced)
    with pytest.raises(ConfigError, match="'stranger::silu_and_mul', which is not an op"):
        resolver.check_forced()


def test_what_is_no_op_is_refused_by_name(registry: OpRegistry) -> None:
    with pytest.raises(PluginError, match="'rms_norm', which is not an op"):
        registry.add("rms_norm", "odd", double)  # pyright: ignore[reportArgumentType]


def test_what_a_failing_plugin_offered_is_taken_back(registry: OpRegistry) -> None:
    offer(registry, "fine")

    def register() -> None:
        with registry.all_or_nothing():
            offer(registry, "torn")
            raise ValueError("torn")

    with pytest.raises(ValueError, match="torn"):
        register()
    assert [i.provider for i in registry.offered(DOUBLE)] == ["fine", REFERENCE]


def test_a_forced_provider_of_a_failing_plugin_names_the_failure(registry: OpRegistry) -> None:
    ALL_OPS["double"] = DOUBLE
    try:
        resolver = Resolver(registry, Device(), {"double": "odd"}, ["plugin odd is torn"])
        with pytest.raises(ConfigError, match=r"no such provider.* The plugin odd is torn"):
            resolver.resolve(DOUBLE, PLAIN)
    finally:
        del ALL_OPS["double"]


def test_a_provider_that_offers_an_op_twice_is_named_once(registry: OpRegistry) -> None:
    ALL_OPS["double"] = DOUBLE
    offer(registry, "fine")
    offer(registry, "fine", requires=Requires(dtypes=frozenset({"float16"})))
    try:
        with pytest.raises(ConfigError, match="Offered for it: fine, reference"):
            Resolver(registry, Device(), {"double": "odd"}).resolve(DOUBLE, PLAIN)
    finally:
        del ALL_OPS["double"]
