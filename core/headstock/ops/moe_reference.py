"""The reference of the op ``experts``: every expert computes every token, and most is thrown away.

That is E / k times the work, but no shape depends on a value.

Shapes: T tokens, k experts of a token, D hidden size, F features between, G both of gate and up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.activation import activate, silu_and_mul
from headstock.ops.device import OpDevice
from headstock.ops.linear import CanonicalWeight, LinearProvider, LinearSpec, linear

if TYPE_CHECKING:
    from headstock.ops.moe import ExpertsSpec, Matrix


class ReferenceExperts:
    """Two reference products for each expert."""

    def __init__(self, spec: ExpertsSpec, device: OpDevice) -> None:
        self.spec = spec
        size, between = spec.hidden_size, spec.intermediate_size
        numbers = range(spec.num_experts)
        self._gate_up = [self._product(size, spec.inner_size, device) for _ in numbers]
        self._down = [self._product(between, size, device) for _ in numbers]

    def _product(self, in_features: int, out_features: int, device: OpDevice) -> LinearProvider:
        spec = LinearSpec(
            in_features=in_features,
            out_features=out_features,
            dtype=self.spec.dtype,
            layout=self.spec.layout,
            group_size=self.spec.group_size,
            has_bias=self.spec.has_bias,
        )
        return linear.reference(spec, device)

    def load(self, part: CanonicalWeight, expert: int, matrix: Matrix, row_begin: int) -> None:
        """Copy the canonical rows ``part``."""
        if matrix == "down":
            self._down[expert].load(part, row_begin)
        else:
            self._gate_up[expert].load(part, self.spec.above(matrix) + row_begin)

    def load_bias(self, bias: Tensor, expert: int, matrix: Matrix, begin: int) -> None:
        """Copy a bias. [rows]"""
        if matrix == "down":
            self._down[expert].load_bias(bias, begin)
        else:
            self._gate_up[expert].load_bias(bias, self.spec.above(matrix) + begin)

    def __call__(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return each token's weighted sum over its experts, lowest expert first. [T, D]"""
        sum_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        for expert, (gate_up, down) in enumerate(zip(self._gate_up, self._down, strict=True)):
            is_chosen_Tk = experts_Tk == expert
            weights_T1 = torch.where(is_chosen_Tk, weights_Tk, 0).sum(dim=1, keepdim=True)
            join = silu_and_mul if self.spec.is_gated else activate
            between_TF = join(gate_up(x_TD), activation=self.spec.activation)
            y_TD = down(between_TF).float() * weights_T1
            # Chosen, not multiplied by 0: what others would have made of a token may be infinite.
            sum_TD += torch.where(is_chosen_Tk.any(dim=1, keepdim=True), y_TD, 0)
        return sum_TD.to(x_TD.dtype)

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage."""
        return sum(product.num_bytes for product in [*self._gate_up, *self._down])
