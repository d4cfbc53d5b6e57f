"""What the backend computes by itself; the rest is the reference, which a runtime compiles."""

from __future__ import annotations

from dataclasses import replace

from headstock.ops.attention import attention
from headstock.ops.base import OpRegistry, Requires, Sizes
from headstock.ops.linear import DENSE, GATED, PRODUCT, ROWS, SCALED_ROWS, linear
from headstock.ops.linear_attention import BY_CHANNEL, linear_attention
from headstock.ops.mamba2 import mamba2
from headstock.ops.selective_scan import selective_scan
from headstock.ops.short_convolution import UNGATED, short_convolution
from headstock.plugins.device import Device
from headstock_tpu.attention import PAGE_SIZES, PagedAttention
from headstock_tpu.linear_attention import StaticLinearAttention
from headstock_tpu.sharding import SpreadAttention, SpreadLinear, runtime_of
from headstock_tpu.state_layers import StaticMamba2, StaticSelectiveScan, StaticShortConvolution

PROVIDER = "tpu"
KERNEL = "pallas"
"""Provider of attention by our kernel, and the capability of a device that can run it."""

PAGED = Requires(
    dtypes=frozenset({"float32", "bfloat16"}),
    page_dtypes=frozenset({"float32", "bfloat16", "float16"}),
    features=frozenset({"sliding_window", "sinks", "soft_cap"}),
    sizes={"page_size": Sizes(only=frozenset(PAGE_SIZES))},
)
LANES = Sizes(only=frozenset({128}))
"""Head sizes for which no chip that the kernel was compiled for copies the pages."""
DENSE_ONLY = Requires(
    layouts=frozenset({DENSE}), features=frozenset({ROWS, SCALED_ROWS, GATED, PRODUCT})
)
STATES = (
    (linear_attention, StaticLinearAttention, {BY_CHANNEL}),
    (mamba2, StaticMamba2, ()),
    (selective_scan, StaticSelectiveScan, ()),
    (short_convolution, StaticShortConvolution, {UNGATED}),
)
"""Layers that keep a state a row: op, builder, features."""


def register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer attention and layers of states; where several devices compute together, products."""
    for op, build, features in STATES:
        registry.add(op, PROVIDER, build, requires=Requires(features=frozenset(features)))
    if runtime_of(device) is not None:
        registry.add(attention, PROVIDER, SpreadAttention, requires=PAGED)
        registry.add(linear, PROVIDER, SpreadLinear, requires=DENSE_ONLY)
        return
    registry.add(attention, PROVIDER, PagedAttention, requires=PAGED)
    if KERNEL in device.capabilities:
        from headstock_tpu.kernel import build_attention

        sizes = {**PAGED.sizes, "head_dim": LANES}
        requires = replace(
            PAGED, page_dtypes=PAGED.dtypes, sizes=sizes, capabilities=frozenset({KERNEL})
        )
        registry.add(attention, KERNEL, build_attention, requires=requires, priority=110)
