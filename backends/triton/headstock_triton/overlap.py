"""Overlap of a kernel with the one before it (programmatic dependent launch).

Every kernel of this package calls ``begin`` once, before it touches anything that an earlier
kernel may write; what it reads before that must be constant (weights, tables). Since each kernel
waits for the whole of the one before, and that one did the same, order holds along the chain.
"""

# ruff: noqa: ANN201 - arguments of kernels are typed by their launch
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def begin(PDL: tl.constexpr):
    """Allow the next kernel to be launched, then wait for the kernels before this one."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()  # pyright: ignore[reportAttributeAccessIssue]
        tl.extra.cuda.gdc_wait()  # pyright: ignore[reportAttributeAccessIssue]
