"""An AMD GPU in use: which there are, and what kernels may ask of them."""

from __future__ import annotations

from typing import Any

import torch

from headstock.errors import UnsupportedError
from headstock_triton.gpu.device import Gpu

MATRIX_CORES = {
    "gfx90a": frozenset({"mfma"}),
    "gfx942": frozenset({"mfma", "fp8_fnuz"}),
    "gfx950": frozenset({"mfma", "fp8"}),
    "gfx1100": frozenset({"wmma"}),
    "gfx1101": frozenset({"wmma"}),
    "gfx1200": frozenset({"wmma", "fp8"}),
    "gfx1201": frozenset({"wmma", "fp8"}),
}
"""Architectures that are served, and what multiplies there.

``fp8_fnuz`` is AMD's own format, whose bits mean half of what OCP's mean: weights that a checkpoint
holds in ``fp8`` are not multiplied by it as they are.
"""


class RocmDevice(Gpu):
    """One AMD GPU.

    Attributes:
        capabilities: ``rocm``, ``bf16``, its architecture, such as ``gfx942``, and what multiplies
            there: ``mfma`` or ``wmma``, ``fp8`` (OCP's) or ``fp8_fnuz`` (AMD's).
    """

    def __init__(self, index: int) -> None:
        properties: Any = torch.cuda.get_device_properties(index)
        super().__init__(index, properties.name, capabilities_of(properties.gcnArchName))


def capabilities_of(arch_name: str) -> frozenset[str]:
    """Return what kernels may ask of an architecture.

    Args:
        arch_name: As the driver writes it, such as ``gfx942:sramecc+:xnack-``.

    Raises:
        UnsupportedError: It has no units for matrix products in bfloat16.
    """
    arch = arch_name.partition(":")[0]
    if arch not in MATRIX_CORES:
        raise UnsupportedError(
            f"The GPU is a {arch}; one of {', '.join(MATRIX_CORES)} is needed.",
            remedy="Choose another --device-index, or --backend reference.",
        )
    return frozenset({"rocm", "bf16", arch}) | MATRIX_CORES[arch]
