"""AMD's optional libraries: which are here. None is needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from headstock.errors import UnsupportedError
from headstock.plugins.hooks import Finding
from headstock.plugins.installed import is_installed, torch_build

AITER, HIPBLASLT = "aiter", "hipblaslt"
"""Providers; the first is a module as well."""
CALLED = ("rms_norm", "rmsnorm2d_fwd_with_add", "silu_and_mul", "gemm_a8w8_blockscale")
"""What is called of AITER."""


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
