"""The toy's matrix products: the weight is kept turned, and only dense ones are taken."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.device import OpDevice
from headstock.ops.linear import CanonicalWeight, LinearSpec


class TurnedLinear:
    """A weight as [I, O]."""

    def __init__(self, spec: LinearSpec) -> None:
        self._weight_IO = torch.full((spec.in_features, spec.out_features), torch.nan).to(
            spec.dtype
        )
        self._bias_O = torch.zeros(spec.out_features, dtype=spec.dtype) if spec.has_bias else None

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        rows = part["weight"]
        self._weight_IO[:, row_begin : row_begin + rows.shape[0]].copy_(rows.T)

    def load_bias(self, bias: Tensor, begin: int) -> None:
        assert self._bias_O is not None, "a bias came for a layer that has none"
        self._bias_O[begin : begin + len(bias)].copy_(bias)

    def __call__(self, x_MI: Tensor) -> Tensor:
        out_MO = x_MI @ self._weight_IO
        return out_MO if self._bias_O is None else out_MO + self._bias_O

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        raise AssertionError("lookups were never declared")

    @property
    def num_bytes(self) -> int:
        return self._weight_IO.nbytes + (0 if self._bias_O is None else self._bias_O.nbytes)


def build_linear(spec: LinearSpec, device: OpDevice) -> TurnedLinear:
    return TurnedLinear(spec)
