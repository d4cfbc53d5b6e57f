"""The reference of the op ``linear``: canonical weights as they are, multiplied by PyTorch.

Shapes: M rows of activations, O output features, I input features, G groups along I, T ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.activation import silu_and_mul
from headstock.ops.canonical import dequantize_scaled, empty_parts
from headstock.ops.device import OpDevice

if TYPE_CHECKING:
    from headstock.ops.linear import CanonicalWeight, GroupedActivations, LinearSpec

BLOCK_ELEMENTS = 1 << 20
"""Weights that :class:`GroupedLinear` holds dequantised at a time: no full copy ever exists."""


class _CanonicalLinear:
    """Storage shaped like the canonical layout, filled row range by row range."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        self.spec = spec
        where = device.torch_device
        shape = (spec.out_features, spec.in_features)
        self.parts = empty_parts(spec.layout, spec.group_size, shape, spec.dtype, where)
        self._dequantize = spec.layout.load_dequantize()
        self.bias_O: Tensor | None = None
        if spec.has_bias:
            self.bias_O = torch.zeros(spec.out_features, dtype=spec.dtype, device=where)

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Copy the canonical rows ``part`` to ``row_begin`` on."""
        assert part.keys() == self.parts.keys(), f"{sorted(part)} is not {sorted(self.parts)}"
        for name, rows in part.items():
            self.parts[name].narrow(0, row_begin, rows.shape[0]).copy_(rows)

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Set the bias of output features from ``begin`` on. [rows]"""
        assert self.bias_O is not None, "a bias came for a layer that has none"
        self.bias_O.narrow(0, begin, bias.shape[0]).copy_(bias)

    def __call__(self, x_MI: Tensor | GroupedActivations) -> Tensor:
        """Return x·Wᵀ + bias, gated if the spec says so. [M, O] or [M, O / 2]"""
        if not isinstance(x_MI, Tensor):
            x_MI = dequantize_scaled(_as_weight(x_MI)).to(self.spec.dtype)
        out_MO = self.multiply(x_MI)
        if not self.spec.is_gated:
            return out_MO
        return silu_and_mul(out_MO, activation=self.spec.activation)

    def product(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias, not gated. [M, O]"""
        return self.multiply(x_MI)

    def multiply(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        raise NotImplementedError

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Look up an embedding; ids outside of [first, first + O) give rows of zeros. [T, I]"""
        local_T = ids_T - first
        is_here_T = (local_T >= 0) & (local_T < self.spec.out_features)
        local_T = local_T.clamp(0, self.spec.out_features - 1)
        found = {name: part.index_select(0, local_T) for name, part in self.parts.items()}
        rows_TI = self._dequantize(found).to(self.spec.dtype)
        if self.spec.row_scale != 1:
            rows_TI = rows_TI * self.spec.row_scale
        return rows_TI.masked_fill(~is_here_T.unsqueeze(1), 0)

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage, the bias among them."""
        stored = [*self.parts.values()] + ([] if self.bias_O is None else [self.bias_O])
        return sum(tensor.nbytes for tensor in stored)


class DenseLinear(_CanonicalLinear):
    """A weight in the model's dtype."""

    def multiply(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias in x's dtype. [M, O]"""
        return functional.linear(x_MI, self.parts["weight"], self.bias_O)


class GroupedLinear(_CanonicalLinear):
    """A weight in a layout with groups, dequantised some rows at a time.

    Raises:
        UnsupportedError: The input features do not divide into groups.
    """

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        super().__init__(spec, device)
        self._rows_per_block = max(1, BLOCK_ELEMENTS // spec.in_features)

    def multiply(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias in x's dtype. [M, O]"""
        out_MO = x_MI.new_empty((*x_MI.shape[:-1], self.spec.out_features))
        for begin in range(0, self.spec.out_features, self._rows_per_block):
            rows = slice(begin, begin + self._rows_per_block)
            block = {name: part[rows] for name, part in self.parts.items()}
            weight_BI = self._dequantize(block).to(x_MI.dtype)
            bias_B = None if self.bias_O is None else self.bias_O[rows]
            out_MO[..., rows] = functional.linear(x_MI, weight_BI, bias_B)
        return out_MO


def _as_weight(x: GroupedActivations) -> dict[str, Tensor]:
    return {"weight": x.values_MI, "scale": x.scale_MG}
