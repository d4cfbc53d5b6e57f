"""What the backend computes by itself; the rest is the reference, which a runtime compiles."""

from __future__ import annotations

from dataclasses import replace

from headstock.ops.attention import attention
from headstock.ops.base import OpRegistry, Requires, Sizes
from headstock.ops.linear import DENSE, GATED, PRODUCT, ROWS, SCALED_ROWS, linear
from headstock.plugins.device import Device
from headstock_tpu.attention import PAGE_SIZES, PagedAttention
from headstock_tpu.sharding import SpreadAttention, SpreadLinear, runtime_of

PROVIDER = "tpu"
KERNEL = "pallas"
"""Provider of attention by our kernel, and the capability of a device that can run it."""

PAGED = Requires(
    dtypes=frozenset({"float32", "bfloat16"}),
    layouts=frozenset({"float32", "bfloat16", "float16"}),
    features=frozenset({"sliding_window", "sinks", "soft_cap"}),
    sizes={"page_size": Sizes(only=frozenset(PAGE_SIZES))},
)
LANES = Sizes(only=frozenset({128}))
"""Head sizes for which no chip that the kernel was compiled for copies the pages."""
DENSE_ONLY = Requires(
    layouts=frozenset({DENSE}), features=frozenset({ROWS, SCALED_ROWS, GATED, PRODUCT})
)


def register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer attention; where several devices compute together, products too."""
    if runtime_of(device) is not None:
        registry.add(attention, PROVIDER, SpreadAttention, requires=PAGED)
        registry.add(linear, PROVIDER, SpreadLinear, requires=DENSE_ONLY)
        return
    registry.add(attention, PROVIDER, PagedAttention, requires=PAGED)
    if KERNEL in device.capabilities:
        from headstock_tpu.kernel import build_attention

        sizes = {**PAGED.sizes, "head_dim": LANES}
        requires = replace(
            PAGED, layouts=PAGED.dtypes, sizes=sizes, capabilities=frozenset({KERNEL})
        )
        registry.add(attention, KERNEL, build_attention, requires=requires, priority=110)
