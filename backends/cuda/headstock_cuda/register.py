"""What this backend offers: the Triton kernels, and attention by the libraries that are here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock_cuda import flash_attention, flashinfer
from headstock_cuda.optional import FLASH_ATTENTION, FLASHINFER
from headstock_triton.register import register_ops as register_kernels

if TYPE_CHECKING:
    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device


def register_ops(registry: OpRegistry, device: Device) -> None:
    """Offer all of it for ``device``."""
    register_kernels(registry, device)
    if FLASH_ATTENTION.is_installed:
        flash_attention.register(registry)
    if FLASHINFER.is_installed:
        flashinfer.register(registry)
