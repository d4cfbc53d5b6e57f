"""Which ops the kernels of CANN compute, and what each needs. The reference does the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.ops.activation import silu_and_mul
from headstock.ops.attention import BIDIRECTIONAL, attention
from headstock.ops.base import Requires, Sizes
from headstock.ops.norm import add_rms_norm, rms_norm
from headstock.ops.rotary import NORMED_LAST, rotate_and_write
from headstock_ascend import layers
from headstock_ascend.attention import PAGE_SIZES, build_attention

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry

PROVIDER = "cann"
NARROW = ("float16", "bfloat16")
FLOATS = frozenset({*NARROW, "float32"})


def register_ops(registry: OpRegistry) -> None:
    """Offer the layers of a model."""
    floats = Requires(dtypes=FLOATS)
    registry.add(rms_norm, PROVIDER, layers.rms_norm, requires=floats)
    registry.add(add_rms_norm, PROVIDER, layers.add_rms_norm, requires=floats)
    registry.add(silu_and_mul, PROVIDER, layers.silu_and_mul, requires=floats)
    registry.add(
        rotate_and_write,
        PROVIDER,
        layers.rotate_and_write,
        requires=Requires(dtypes=FLOATS, features=frozenset({NORMED_LAST})),
    )
    for dtype in NARROW:
        registry.add(attention, PROVIDER, build_attention, requires=paged(dtype))


def paged(dtype: str) -> Requires:
    """Return what attention in ``dtype`` needs; pages are in the same one.

    Heads times their size must stay under 65,535, so both are bounded.
    """
    return Requires(
        dtypes=frozenset({dtype}),
        layouts=frozenset({dtype}),
        features=frozenset({BIDIRECTIONAL}),
        sizes={
            "page_size": Sizes(only=frozenset(PAGE_SIZES)),
            "head_dim": Sizes(multiple_of=16, at_most=256),
            "heads_per_kv_head": Sizes(at_most=64),
            "num_heads": Sizes(at_most=255),
        },
    )
