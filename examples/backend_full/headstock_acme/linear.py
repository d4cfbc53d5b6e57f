"""Matrix products with the weight kept turned. Shapes: M rows, O outputs, I inputs, G groups."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.device import OpDevice
from headstock.ops.linear import DENSE, CanonicalWeight, LinearSpec


class TurnedLinear:
    """A dense weight as [I, O]."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        where, sizes = device.torch_device, (spec.in_features, spec.out_features)
        self._weight_IO = torch.empty(sizes, dtype=spec.dtype, device=where)
        self._bias_O = torch.zeros(spec.out_features, dtype=spec.dtype, device=where)

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        rows_OI = part["weight"]
        self._weight_IO[:, row_begin : row_begin + len(rows_OI)].copy_(rows_OI.T)

    def load_bias(self, bias: Tensor, begin: int) -> None:
        self._bias_O[begin : begin + len(bias)].copy_(bias)

    def __call__(self, x_MI: Tensor) -> Tensor:
        return torch.addmm(self._bias_O, x_MI, self._weight_IO)

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        raise AssertionError("feature `rows` was not declared, so it must not be asked for")

    @property
    def num_bytes(self) -> int:
        return self._weight_IO.nbytes + self._bias_O.nbytes


class TurnedInt8(TurnedLinear):
    """A weight in ``int8-group`` as int8 [I, O] and its scales as [G, O]."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        super().__init__(spec, device)
        where, num_groups = device.torch_device, spec.in_features // spec.group_size
        self._weight_IO = self._weight_IO.to(torch.int8)
        self._scale_GO = torch.empty((num_groups, spec.out_features), device=where)

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        super().load(part, row_begin)
        scale_OG = part["scale"]
        self._scale_GO[:, row_begin : row_begin + len(scale_OG)].copy_(scale_OG.T)

    def __call__(self, x_MI: Tensor) -> Tensor:
        num_groups = len(self._scale_GO)
        x_GMi = x_MI.float().unflatten(1, (num_groups, -1)).transpose(0, 1)
        weight_GiO = self._weight_IO.float().unflatten(0, (num_groups, -1))
        sums_GMO = torch.bmm(x_GMi, weight_GiO) * self._scale_GO.unsqueeze(1)
        return (sums_GMO.sum(dim=0) + self._bias_O).to(x_MI.dtype)

    @property
    def num_bytes(self) -> int:
        return super().num_bytes + self._scale_GO.nbytes


def build_linear(spec: LinearSpec, device: OpDevice) -> TurnedLinear:
    return TurnedLinear(spec, device) if spec.layout == DENSE else TurnedInt8(spec, device)
