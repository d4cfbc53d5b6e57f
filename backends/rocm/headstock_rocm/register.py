"""What this backend offers: the Triton kernels, and what AMD's libraries compute.

The libraries are offered below our kernels, so that they compute where ``--op`` names them: none
was run on an AMD GPU yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.ops.activation import silu_and_mul
from headstock.ops.base import Requires, Sizes
from headstock.ops.linear import FP8_GROUP, LinearBuilder, linear
from headstock.ops.norm import add_rms_norm, rms_norm
from headstock.plugins.installed import is_installed
from headstock_rocm import aiter_ops, fp8
from headstock_rocm.libraries import AITER, HIPBLASLT
from headstock_triton.fp8 import GROUP
from headstock_triton.fp8_formats import FORMATS
from headstock_triton.register import register_ops as register_kernels

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device

PRIORITY = 50
"""Below that of our kernels."""


def register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer all of it for ``device``."""
    register_kernels(registry, device)
    register_libraries(registry)


def register_libraries(registry: OpRegistry) -> None:
    """Offer what the libraries that are installed compute."""
    narrow = Requires(dtypes=frozenset({"float16", "bfloat16"}))
    builders: dict[str, LinearBuilder] = {HIPBLASLT: fp8.build_hipblaslt_fp8}
    if is_installed(AITER):
        builders[AITER] = fp8.build_aiter_fp8
        for op, run in (
            (rms_norm, aiter_ops.rms_norm),
            (add_rms_norm, aiter_ops.add_rms_norm),
            (silu_and_mul, aiter_ops.silu_and_mul),
        ):
            registry.add(op, AITER, run, requires=narrow, priority=PRIORITY)
    for provider, build in builders.items():
        for kind in FORMATS:
            requires = Requires(
                dtypes=narrow.dtypes,
                layouts=frozenset({FP8_GROUP}),
                sizes={
                    "group_size": Sizes(only=frozenset({GROUP})),
                    "out_features": Sizes(multiple_of=16),
                },
                capabilities=frozenset({kind.capability, "mfma"}),
            )
            registry.add(linear, provider, build, requires=requires, priority=PRIORITY)
