"""Products with weights in 8 and 4 bits.

Shapes: M rows of activations, O output features, I input features, G groups along I.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.device import OpDevice
from headstock.ops.linear import INT4_GROUP, CanonicalWeight, LinearSpec

NIBBLES = 8
"""4-bit numbers that the kernel wants in an int32, and half of the values that each can have."""


class QuantisedRows:
    """A weight in int8 or int4 with a scale for each group; the kernel widens it as it goes.

    It lies by output features, and the kernel takes all of it turned, as views. Scales are in the
    dtype of the activations. What it multiplies by is scale · (q + offset); its int4 begin at -8,
    so that the offset holds the least value of a group, in steps of the scale.
    """

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        self.spec = spec
        self._where = device.torch_device
        self._parts: dict[str, Tensor] = {}
        self._bias_O: Tensor | None = None
        if spec.has_bias:
            dtype = torch.float32 if spec.dtype == torch.bfloat16 else spec.dtype  # as it asks
            self._bias_O = torch.zeros(spec.out_features, dtype=dtype, device=self._where)
        self._is_int4 = spec.layout == INT4_GROUP
        num_groups = spec.in_features // spec.group_size
        if self._is_int4:
            self._weight_OI = self._keep("weight", spec.in_features // NIBBLES, torch.int32)
            self._offset_OG = self._keep("offset", num_groups, spec.dtype)
        else:
            self._weight_OI = self._keep("weight", spec.in_features, torch.int8)
        self._scale_OG = self._keep("scale", num_groups, spec.dtype)
        self._group_size = spec.group_size if num_groups > 1 else 0

    def _keep(self, name: str, width: int, dtype: torch.dtype) -> Tensor:
        """Make storage of ``width`` numbers for each output feature."""
        shape = (self.spec.out_features, width)
        self._parts[name] = torch.empty(shape, dtype=dtype, device=self._where)
        return self._parts[name]

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Pack canonical rows as output features from ``row_begin`` on."""
        packed = self._as_int4(part) if self._is_int4 else part
        for name, rows in packed.items():
            self._parts[name].narrow(0, row_begin, len(rows)).copy_(rows)

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Set the bias of output features from ``begin`` on. [rows]"""
        assert self._bias_O is not None, "a bias came for a layer that has none"
        self._bias_O.narrow(0, begin, len(bias)).copy_(bias)

    def _as_int4(self, part: CanonicalWeight) -> dict[str, Tensor]:
        bytes_OI = part["weight"].to(self._where)
        scale_OG, minimum_OG = (part[name].to(self._where) for name in ("scale", "minimum"))
        nibbles_OI = torch.stack((bytes_OI & 15, bytes_OI >> 4), dim=-1).flatten(1).to(torch.int32)
        # A group without a scale is its minimum, which then is the scale of 1.
        is_flat_OG = scale_OG == 0
        flat_OI = is_flat_OG.repeat_interleave(self.spec.group_size, dim=1)
        unit_OG = torch.where(minimum_OG == 0, 1.0, minimum_OG)
        steps_OG = torch.where(is_flat_OG, unit_OG, scale_OG)
        return {
            "weight": torch.ops.npu.npu_convert_weight_to_int4pack(
                nibbles_OI.masked_fill(flat_OI, 0) - NIBBLES
            ),
            "scale": steps_OG,
            "offset": minimum_OG / steps_OG + NIBBLES,
        }

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        return torch.ops.npu.npu_weight_quant_batchmatmul(
            x_MI.contiguous(),
            self._weight_OI.t(),
            self._scale_OG.t(),
            self._offset_OG.t() if self._is_int4 else None,
            bias=self._bias_O,
            antiquant_group_size=self._group_size,
        )

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Fail: lookups were never declared."""
        raise AssertionError("feature `rows` was not declared, so it must not be asked for")

    @property
    def num_bytes(self) -> int:
        """Bytes of the storage, the bias among them."""
        stored = [*self._parts.values()] + ([] if self._bias_O is None else [self._bias_O])
        return sum(tensor.nbytes for tensor in stored)


def build_linear(spec: LinearSpec, device: OpDevice) -> QuantisedRows:
    """Build the provider."""
    return QuantisedRows(spec, device)
