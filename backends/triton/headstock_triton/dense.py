"""Dense matrices: few rows by our own kernel, more by the vendor's library through PyTorch.

Gated products of many rows are ours again on Hopper, where the gate joins the product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import linear

from headstock.ops.linear import CanonicalWeight, LinearSpec
from headstock_triton.activation import Activations
from headstock_triton.embedding import embedding_rows
from headstock_triton.gemv import gemv, is_faster
from headstock_triton.target import Target

if TYPE_CHECKING:
    from types import ModuleType

    from headstock.ops.device import OpDevice

GATED_ROWS = 512
"""Rows from which joining the gate beats the vendor's library and a kernel for the gate."""


class DenseLinear:
    """A dense weight in the model's dtype, row-major as checkpoints keep it."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        where = device.torch_device
        self._target = Target.of(device)
        self._row_scale = spec.row_scale
        shape = (spec.out_features, spec.in_features)
        self._weight_OI = torch.zeros(shape, dtype=spec.dtype, device=where)
        self._bias_O: Tensor | None = None
        if spec.has_bias:
            self._bias_O = torch.zeros(spec.out_features, dtype=spec.dtype, device=where)
        self._gate = Activations(self._target).silu_and_mul if spec.is_gated else None
        self._hopper = gated_kernel(spec, self._target)

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Copy the rows."""
        rows = part["weight"]
        self._weight_OI[row_begin : row_begin + rows.shape[0]].copy_(rows)

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Copy the bias."""
        assert self._bias_O is not None, "the spec has no bias"
        self._bias_O[begin : begin + bias.shape[0]].copy_(bias)

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias, gated where the spec says so. [M, O] or [M, O / 2]"""
        if self._gate is None:
            return self.product(x_MI)
        if self._hopper is not None and x_MI.shape[0] >= GATED_ROWS and x_MI.is_contiguous():
            return self._hopper.gated(x_MI, self._weight_OI, self._target.num_sms)
        return self._gate(self.product(x_MI))

    def product(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias, not gated. [M, O]"""
        if is_faster(x_MI.shape[0], *self._weight_OI.shape) and x_MI.stride(1) == 1:
            return gemv(x_MI, self._weight_OI, self._bias_O, self._target)
        return linear(x_MI, self._weight_OI, self._bias_O)

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Look up rows; zeros for ids that are not here. [T, I]"""
        return embedding_rows(self._weight_OI, ids_T, first, self._target, self._row_scale)

    @property
    def num_bytes(self) -> int:
        """Bytes of weight and bias."""
        held = [self._weight_OI] if self._bias_O is None else [self._weight_OI, self._bias_O]
        return sum(t.numel() * t.element_size() for t in held)


def gated_kernel(spec: LinearSpec, target: Target) -> ModuleType | None:
    """Return the module of the gated product where ``spec`` is one that it takes."""
    if not (target.has_wgmma and spec.is_gated and not spec.has_bias):
        return None
    from headstock_triton import gated_hopper

    num_out = spec.out_features // 2
    return gated_hopper if gated_hopper.takes(num_out, spec.in_features, spec.dtype) else None


def build_dense(spec: LinearSpec, device: OpDevice) -> DenseLinear:
    """Build the provider for ``spec``."""
    return DenseLinear(spec, device)
