"""Canonical layouts are values: Headstock's own, and those that plugins bring."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.formats import Index
from headstock.checkpoint.quantized import find_reader
from headstock.errors import PluginError, UnsupportedError
from headstock.ops.base import OpRegistry, Requires, Resolver
from headstock.ops.canonical import count_bytes, empty_parts
from headstock.ops.cases.base import Bench
from headstock.ops.layouts import CanonicalLayout, Stored
from headstock.ops.linear import DENSE, INT8_GROUP, LAYOUTS, CanonicalWeight, LinearSpec, linear
from headstock.ops.moe import experts
from headstock.plugins.host import HostDevice
from headstock.plugins.quantization import QuantizationRegistry
from headstock.testing.checks import judge
from headstock.testing.layouts import check_layout

PACKAGE = __name__.partition(".")[0]
PARTS = {"codes": Stored("uint8", 4), "step": Stored("float32", 0)}
CPU = torch.device("cpu")


def dequantize(part: Mapping[str, Tensor]) -> Tensor:
    """Return -1.5, -0.5, 0.5 or 1.5 steps for each two bits."""
    codes_OI = ((part["codes"].unsqueeze(-1) >> torch.arange(0, 8, 2)) & 3).flatten(1)
    values_OGg = (codes_OI - 1.5).unflatten(1, (part["step"].shape[1], -1))
    return (values_OGg * part["step"].unsqueeze(-1)).flatten(1)


def quantize(weight_OI: Tensor, group_size: int) -> dict[str, Tensor]:
    """Return the nearest of four values; the outer ones are the largest magnitude."""
    groups_OGg = weight_OI.unflatten(1, (-1, group_size))
    step_OG = groups_OGg.abs().amax(dim=-1) / 1.5
    codes_OGg = (groups_OGg / step_OG.unsqueeze(-1) + 1.5).round().clamp(0, 3)
    fours = codes_OGg.flatten(1).unflatten(1, (-1, 4)).to(torch.int64)
    codes = (fours << torch.arange(0, 8, 2)).sum(-1)
    return {"codes": codes.to(torch.uint8), "step": step_OG}


def dequantize_wrongly(part: Mapping[str, Tensor]) -> Tensor:
    """Forget that groups may be cut: every group has the first one's step."""
    return dequantize({**part, "step": part["step"][:, :1].expand_as(part["step"])})


TWO_BITS = CanonicalLayout(
    f"{PACKAGE}::two-bits",
    parts=PARTS,
    dequantize=f"{__name__}:dequantize",
    quantize=f"{__name__}:quantize",
)


class TwoBitsLinear:
    """A product of its own: activations by codes, group by group, and never a whole weight."""

    def __init__(self, spec: LinearSpec, device: object) -> None:
        self.spec = spec
        shape = (spec.out_features, spec.in_features)
        self.parts = empty_parts(spec.layout, spec.group_size, shape, spec.dtype, CPU)
        self.bias_O: Tensor | None = None

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        for name, rows in part.items():
            self.parts[name][row_begin : row_begin + len(rows)] = rows

    def load_bias(self, bias: Tensor, begin: int) -> None:
        bias_O = torch.zeros(self.spec.out_features) if self.bias_O is None else self.bias_O
        bias_O[begin : begin + len(bias)] = bias
        self.bias_O = bias_O

    def __call__(self, x_MI: Tensor) -> Tensor:
        step_OG = self.parts["step"]
        ones = torch.ones_like(step_OG)
        values_OGg = dequantize({**self.parts, "step": ones}).unflatten(1, (step_OG.shape[1], -1))
        x_MGg = x_MI.float().unflatten(-1, (step_OG.shape[1], -1))
        sums_MOG = torch.einsum("mgi,ogi->mog", x_MGg, values_OGg)
        out_MO = (sums_MOG * step_OG).sum(-1)
        return (out_MO if self.bias_O is None else out_MO + self.bias_O).to(self.spec.dtype)


@pytest.mark.parametrize("layout", [*(one for one in LAYOUTS if one != DENSE), TWO_BITS])
def test_a_layout_keeps_its_promises(layout: CanonicalLayout) -> None:
    check_layout(layout)


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"dequantize": f"{__name__}:dequantize_wrongly"}, "input features of it alone"),
        ({"parts": {**PARTS, "codes": Stored("uint8", 2)}}, "its parts say"),
        ({"parts": {**PARTS, "more": Stored("float32", 0)}}, "quantize returns"),
    ],
)
def test_a_layout_that_breaks_them_is_found(changes: dict[str, object], finding: str) -> None:
    functions = {name: f"{__name__}:{name}" for name in ("dequantize", "quantize")}
    good = {"parts": PARTS, **functions}
    with pytest.raises(AssertionError, match=finding):
        check_layout(CanonicalLayout(f"{PACKAGE}::bad", **{**good, **changes}))  # pyright: ignore[reportArgumentType]


def test_a_layout_is_its_name_and_survives_copying() -> None:
    assert INT8_GROUP == "int8-group"
    assert {"int8-group": 1}[INT8_GROUP] == 1
    copied = copy.deepcopy(TWO_BITS)
    assert (copied, copied.parts, copied.unit) == (TWO_BITS, TWO_BITS.parts, 4)


def test_bytes_are_counted_as_they_are_kept() -> None:
    for layout in (*LAYOUTS, TWO_BITS):
        group_size = 0 if layout == DENSE else 32
        parts = empty_parts(layout, group_size, (24, 96), torch.bfloat16, CPU)
        counted = count_bytes(layout, group_size, 24 * 96, torch.bfloat16)
        assert counted == sum(part.nbytes for part in parts.values())


def test_inputs_that_no_group_fits_are_refused_with_the_layout_s_name() -> None:
    with pytest.raises(
        UnsupportedError, match=r"50 input features .* groups of 32 in layout .*::two-bits"
    ):
        empty_parts(TWO_BITS, 32, (4, 50), torch.float32, CPU)


@pytest.mark.parametrize("op", [linear, experts], ids=lambda op: op.name)
def test_the_reference_multiplies_a_plugin_s_layout_in_every_case_of_the_kit(op: object) -> None:
    registry, device = OpRegistry(), HostDevice()
    bench = Bench(resolver=Resolver(registry, device), dtype=torch.float32, layouts=(TWO_BITS,))
    (reference,) = registry.offered(op)  # pyright: ignore[reportArgumentType]
    verdict = judge(op, reference, [bench])  # pyright: ignore[reportArgumentType]
    assert TWO_BITS in verdict.kinds
    assert not verdict.findings


def test_a_provider_that_names_the_layout_is_chosen_and_certified() -> None:
    registry, device = OpRegistry(), HostDevice()
    requires = Requires(layouts=frozenset({TWO_BITS}))
    registry.add(linear, "native", TwoBitsLinear, requires=requires)
    resolver = Resolver(registry, device)
    spec = LinearSpec(
        in_features=64, out_features=8, dtype=torch.float32, layout=TWO_BITS, group_size=32
    )
    assert resolver.resolve(linear, spec.as_spec()) is TwoBitsLinear
    bench = Bench(resolver=resolver, dtype=torch.float32, layouts=(TWO_BITS,))
    verdict = judge(linear, registry.offered(linear)[0], [bench])
    assert verdict.num_checked >= 6
    assert not verdict.findings


def test_a_provider_that_does_not_know_the_layout_is_refused_when_it_is_forced() -> None:
    registry = OpRegistry()
    registry.add(linear, "eight", TwoBitsLinear, requires=Requires(layouts=frozenset({INT8_GROUP})))
    spec = LinearSpec(
        in_features=64, out_features=8, dtype=torch.float32, layout=TWO_BITS, group_size=32
    )
    forced = Resolver(registry, HostDevice(), {"linear": "eight"})
    with pytest.raises(UnsupportedError, match=rf"eight: layout {TWO_BITS} not in"):
        forced.resolve(linear, spec.as_spec())


@pytest.mark.parametrize("name", ["two-bits", "::two-bits", f"{PACKAGE}::", "other::two-bits"])
def test_a_layout_is_named_after_the_package_that_has_it(name: str) -> None:
    with pytest.raises(PluginError, match="package::name"):
        QuantizationRegistry().add_layout(name, f"{__name__}:TWO_BITS")


def test_what_is_named_must_be_a_layout_of_that_name() -> None:
    registry = QuantizationRegistry()
    registry.add_layout(f"{PACKAGE}::one-bit", f"{__name__}:TWO_BITS")
    with pytest.raises(PluginError, match=r"one-bit'.* is '.*two-bits'"):
        registry.layouts.load(f"{PACKAGE}::one-bit")


def test_a_plugin_that_raises_has_its_layouts_taken_back() -> None:
    registry = QuantizationRegistry()

    def register() -> None:
        registry.add_layout(TWO_BITS, f"{__name__}:TWO_BITS")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"), registry.all_or_nothing():
        register()
    assert registry.layout_names == []


def keep(index: Index, quantization: Mapping[str, object]) -> Index:
    """Be a reader whose tensors are in the layout of this file."""
    return index


@pytest.mark.parametrize("is_named", [True, False])
def test_a_reader_may_use_the_layouts_that_plugins_named(is_named: bool) -> None:
    registry = QuantizationRegistry()
    registry.add("mine", f"{__name__}:keep")
    if is_named:
        registry.add_layout(TWO_BITS, f"{__name__}:TWO_BITS")
    tensor = StoredTensor(
        name="a", shape=(4, 32), dtype="", layout=TWO_BITS, num_bytes=4, read=lambda *_: {}
    )
    config = {"quantization_config": {"quant_method": "mine"}}
    read = find_reader(__file__, config, lambda: registry)  # pyright: ignore[reportArgumentType]
    if is_named:
        assert read({"a": tensor}) == {"a": tensor}
        return
    with pytest.raises(PluginError, match=r"reader of mine gives a in layout .*two-bits"):
        read({"a": tensor})
