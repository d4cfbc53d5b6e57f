"""FP8 products by AMD's libraries, where a weight's scales are shared as they need it.

AITER multiplies weights with one scale for 128 by 128 numbers, hipBLASLt, which is reached through
PyTorch, those with one scale for an output feature. What they do not take, our kernel multiplies.

Shapes: M rows of activations, O output and I input features, G groups of input features, B blocks
of output features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstock.ops.linear import CanonicalWeight, LinearSpec
from headstock_rocm.libraries import load_aiter
from headstock_triton.fp8 import GROUP, quantize_rows
from headstock_triton.fp8_blocks import BlockFp8Linear

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice
    from headstock_triton.fp8_formats import Fp8Format


class AiterFp8(BlockFp8Linear):
    """By ``aiter.gemm_a8w8_blockscale`` where blocks of 128 output features share their scales."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        super().__init__(spec, device)
        self._library: Any = load_aiter()
        self._scale_BG: Tensor | None = None

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Convert the rows; look whether all that is loaded shares scales by blocks."""
        super().load(part, row_begin)
        firsts_GB = self._scale_GO[:, ::GROUP]
        shared_GO = firsts_GB.repeat_interleave(GROUP, dim=1)[:, : self.spec.out_features]
        is_shared = torch.equal(shared_GO, self._scale_GO)
        self._scale_BG = firsts_GB.t().contiguous() if is_shared else None

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        if self._scale_BG is None or not len(x_MI):
            return super().__call__(x_MI)
        values_MI, scales_MG = quantize_rows(x_MI.contiguous(), self._target, kind=self._kind)
        out_MO = self._library.gemm_a8w8_blockscale(
            values_MI[: len(x_MI)],
            self._weight_OI,
            scales_MG[: len(x_MI)].contiguous(),
            self._scale_BG,
            dtype=x_MI.dtype,
        )
        return out_MO if self._bias_O is None else out_MO + self._bias_O


class HipblasltFp8(BlockFp8Linear):
    """By hipBLASLt, as PyTorch calls it, where an output feature has one scale."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        super().__init__(spec, device)
        self._scale_1O: Tensor | None = None

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Convert the rows; look whether all that is loaded has one scale a row."""
        super().load(part, row_begin)
        first_1O = self._scale_GO[:1]
        is_shared = torch.equal(first_1O.expand_as(self._scale_GO), self._scale_GO)
        self._scale_1O = first_1O.clone() if is_shared else None

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        if self._scale_1O is None or not len(x_MI):
            return super().__call__(x_MI)
        values_MI, scale_M1 = quantize_whole_rows(x_MI, self._kind)
        out_MO = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            values_MI,
            self._weight_OI.t(),
            scale_a=scale_M1,
            scale_b=self._scale_1O,
            out_dtype=x_MI.dtype,
        )
        return out_MO if self._bias_O is None else out_MO + self._bias_O


def quantize_whole_rows(x_MI: Tensor, kind: Fp8Format) -> tuple[Tensor, Tensor]:
    """Return rows in 8-bit floats, and a scale of each. [M, I], float32 [M, 1]"""
    wide_MI = x_MI.float()
    scale_M1 = wide_MI.abs().amax(dim=1, keepdim=True) / kind.largest
    scale_M1 = torch.where(scale_M1 > 0, scale_M1, 1.0)
    return (wide_MI / scale_M1).to(kind.dtype), scale_M1


def build_aiter_fp8(spec: LinearSpec, device: OpDevice) -> AiterFp8:
    """Build the provider for ``spec``.

    Raises:
        UnsupportedError: AITER cannot be imported.
    """
    return AiterFp8(spec, device)


def build_hipblaslt_fp8(spec: LinearSpec, device: OpDevice) -> HipblasltFp8:
    """Build the provider for ``spec``."""
    return HipblasltFp8(spec, device)
