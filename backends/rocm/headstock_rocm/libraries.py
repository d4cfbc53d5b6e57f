"""AMD's optional libraries: which are here, and what they are offered for. None is needed.

They are offered below our kernels, so that they compute where ``--op`` names them: none was run on
an AMD GPU yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from headstock.errors import UnsupportedError
from headstock.plugins.hooks import Finding
from headstock.plugins.installed import is_installed, torch_build

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.ops.linear import LinearBuilder

AITER, HIPBLASLT = "aiter", "hipblaslt"
"""Providers; the first is a module as well."""
CALLED = ("rms_norm", "rmsnorm2d_fwd_with_add", "silu_and_mul", "gemm_a8w8_blockscale")
"""What is called of AITER."""
PRIORITY = 50
"""Below that of our kernels."""


@cache
def load_aiter() -> Any:
    """Import AITER, which loads its code for GPUs.

    Raises:
        UnsupportedError: It cannot be imported, or lacks what is called of it.
    """
    remedy = "Install the AITER that fits this ROCm, or leave its ops to Triton."
    try:
        library = import_module(AITER)
    except (ImportError, OSError, RuntimeError, AttributeError, LookupError) as error:
        raise UnsupportedError(f"AITER cannot be imported: {error}.", remedy=remedy) from error
    lacking = [name for name in CALLED if not hasattr(library, name)]
    if lacking:
        raise UnsupportedError(f"AITER lacks {', '.join(lacking)}.", remedy=remedy)
    return library


def findings() -> Iterator[Finding]:
    """Yield a line for the doctor for each."""
    build = torch_build()
    toolkit = None if build is None else build.toolkits.get("hip")
    yield Finding(subject="PyTorch", is_ok=toolkit is not None, text=f"built for ROCm {toolkit}")
    text = f"within PyTorch; FP8 weights with a scale a row: --op linear={HIPBLASLT}"
    yield Finding(subject="hipBLASLt", is_ok=toolkit is not None, text=text)
    yield aiter_finding()


def aiter_finding() -> Finding:
    """Say whether AITER is here and can be imported, and why not."""
    if not is_installed(AITER):
        return Finding(subject="AITER", is_ok=True, text="not installed, optional")
    try:
        load_aiter()
    except UnsupportedError as error:
        return Finding(subject="AITER", is_ok=False, text=error.problem, remedy=error.remedy)
    return Finding(subject="AITER", is_ok=True, text=f"installed: --op linear={AITER}, and others")


def register_libraries(registry: OpRegistry) -> None:
    """Offer what the libraries that are installed compute."""
    from headstock.ops.activation import silu_and_mul
    from headstock.ops.base import Requires, Sizes
    from headstock.ops.linear import FP8_GROUP, linear
    from headstock.ops.norm import add_rms_norm, rms_norm
    from headstock_rocm import aiter_ops, fp8
    from headstock_triton.fp8 import GROUP
    from headstock_triton.fp8_formats import FORMATS

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
