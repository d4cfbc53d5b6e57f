"""What a package's canonical layout promises, checked: for the package's own tests, and the kit.

Shapes: O output features, I input features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from headstock.ops.canonical import dequantize, empty_parts
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import CanonicalWeight
from headstock.plugins.loader import Plugins
from headstock.plugins.places import ask_each
from headstock.plugins.quantization import QuantizationRegistry
from headstock.quantization.convert import narrow_inputs, split_groups
from headstock.quantization.plan import Layout

HOOK = "headstock_register_quantization"
OUT_FEATURES = 24
NUM_GROUPS = 6
SAME = (1e-3, 1e-4)
"""(relative, absolute) for weights of unit deviation that are quantised a second time."""


def check_layout(layout: CanonicalLayout) -> None:
    """Check a layout on random weights: its parts, its two functions, and cuts of both axes.

    Raises:
        AssertionError: Saying what is wrong.
        PluginError: One of its functions does not import.
    """
    group_size = 2 * math.lcm(16, layout.unit)
    kept = Layout(layout, group_size)
    shape = (OUT_FEATURES, NUM_GROUPS * group_size)
    weight_OI = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    part = layout.load_quantize()(weight_OI, group_size)
    _check_parts(layout, part, empty_parts(layout, group_size, shape, torch.float32, CPU))
    whole_OI = layout.load_dequantize()(part)
    assert whole_OI.dtype == torch.float32, f"{layout}: dequantize returns {whole_OI.dtype}"
    assert whole_OI.shape == shape, f"{layout}: dequantize returns {list(whole_OI.shape)}"
    rows = {name: tensor[5:9] for name, tensor in part.items()}
    _check_same(layout, "rows of it alone", rows, whole_OI[5:9])
    begin, end = group_size, 3 * group_size
    inputs = narrow_inputs(part, kept, begin, end)
    _check_same(layout, "input features of it alone", inputs, whole_OI[:, begin:end])
    smaller = split_groups(part, kept, group_size // 2)
    _check_same(layout, "its groups cut in halves", smaller, whole_OI)
    again_OI = layout.load_dequantize()(layout.load_quantize()(whole_OI, group_size))
    rtol, atol = SAME
    is_kept = torch.allclose(again_OI, whole_OI, rtol=rtol, atol=atol)
    assert is_kept, f"{layout}: weights that it can hold exactly change when they are quantised"


CPU = torch.device("cpu")


def _check_parts(layout: CanonicalLayout, part: CanonicalWeight, wanted: CanonicalWeight) -> None:
    assert part.keys() == wanted.keys(), f"{layout}: quantize returns {sorted(part)}"
    for name, tensor in part.items():
        got = (tensor.dtype, tuple(tensor.shape))
        meant = (wanted[name].dtype, tuple(wanted[name].shape))
        assert got == meant, f"{layout}: {name} is {got}; its parts say {meant}"


def _check_same(
    layout: CanonicalLayout, what: str, part: CanonicalWeight, wanted_OI: Tensor
) -> None:
    got_OI = dequantize(layout, part, torch.float32)
    assert torch.equal(got_OI, wanted_OI), f"{layout}: {what} have other values"


def plugin_layouts(plugins: Plugins) -> tuple[CanonicalLayout, ...]:
    """Return the layouts that ``plugins`` bring, imported.

    Raises:
        PluginError: One does not import.
    """
    registry = QuantizationRegistry()
    failures = ask_each(plugins, HOOK, registry)
    assert not failures, "; ".join(failures)
    return tuple(registry.layouts.load(name) for name in registry.layout_names)
