"""An NVIDIA GPU in use: what it must have, and how its products are summed.

Matrix products of float32 models are computed in float32, not in TF32, and sums of 16-bit products
are carried in float32 to the end; both are PyTorch's switches, set when a device opens.
"""

from __future__ import annotations

import torch

from headstock.errors import UnsupportedError
from headstock_triton.gpu.device import Gpu

MIN_ARCH = 80
"""Ampere: the first with bfloat16 and asynchronous copies."""

ARCH_STEPS = (80, 86, 89, 90, 100, 103, 120)


class CudaDevice(Gpu):
    """One NVIDIA GPU.

    Attributes:
        capabilities: ``cuda``, ``bf16``, ``fp8`` from Ada on, and ``sm_80``, ``sm_90`` … for every
            architecture up to its own: "at least that". ``sm_90a`` and later are what one
            architecture alone has, such as Hopper's products of warp groups.
    """

    def __init__(self, index: int) -> None:
        properties = torch.cuda.get_device_properties(index)
        arch = properties.major * 10 + properties.minor
        if arch < MIN_ARCH:
            raise UnsupportedError(
                f"{properties.name} has compute capability {properties.major}.{properties.minor};"
                " 8.0 or newer is needed.",
                remedy="Choose another --device-index, or --backend reference.",
            )
        super().__init__(index, properties.name, _capabilities(arch))
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def _capabilities(arch: int) -> frozenset[str]:
    reached = {f"sm_{step}" for step in ARCH_STEPS if step <= arch}
    own = {f"sm_{arch}a"} if arch >= 90 else set[str]()
    return frozenset({"cuda", "bf16", *reached, *own} | ({"fp8"} if arch >= 89 else set()))
