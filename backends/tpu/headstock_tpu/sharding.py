"""Several devices that compute each layer together, in one process.

Weights and pages are spread over the devices once; the compiler splits every product along, and
puts in what the devices must send each other. The core sees one device and one rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headstock.ops.device import OpDevice
from headstock.ops.linear import CanonicalWeight, LinearSpec
from headstock.ops.linear_reference import DenseLinear
from headstock_tpu.attention import PagedAttention

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.attention import AttentionSpec, StepBatch
    from headstock_tpu.device import TpuDevice
    from headstock_tpu.xla import XlaRuntime

KV_HEADS = 2
"""Axis of pages that counts key and value heads."""


class SpreadLinear(DenseLinear):
    """A dense weight of which each device has some output features."""

    def __init__(self, spec: LinearSpec, device: TpuDevice) -> None:
        super().__init__(spec, device)
        self._runtime: Any = device.runtime
        self._is_spread = False

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Copy the canonical rows ``part`` to ``row_begin`` on; they are spread when first used."""
        super().load(part, row_begin)
        self._is_spread = False

    def multiply(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias in x's dtype. [M, O]"""
        if not self._is_spread:
            self._runtime.spread(self.parts["weight"], axis=0)
            self._is_spread = True
        return super().multiply(x_MI)


class SpreadAttention(PagedAttention):
    """Attention whose pages are spread by key and value heads."""

    def __init__(self, spec: AttentionSpec, device: TpuDevice) -> None:
        super().__init__(spec, device)
        self._runtime: Any = device.runtime
        self._spread: list[Tensor] = []

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values at the batch's write slots, in pages that are spread by then."""
        if not any(known is kv for known in self._spread):
            self._runtime.spread(kv, axis=KV_HEADS)
            self._spread.append(kv)
        super().write(k_TKD, v_TKD, kv, batch)


def runtime_of(device: OpDevice) -> XlaRuntime | None:
    """Return the runtime of a device that is several; None: it is one."""
    runtime = getattr(device, "runtime", None)
    return runtime if getattr(runtime, "mesh", None) is not None else None
