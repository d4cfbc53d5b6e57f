"""Attention by the Pallas kernel, inside a program of torch-xla."""

from __future__ import annotations

from typing import Any

import torch_xla.core.xla_builder as xla_builder  # pyright: ignore[reportMissingImports]
from torch import Tensor

from headstock.ops.attention import AttentionSpec, StepBatch
from headstock.ops.device import OpDevice
from headstock_tpu.attention import PagedAttention
from headstock_tpu.pallas_attention import paged_attention


class KernelAttention(PagedAttention):
    """Writes as the pure form does, and attends by the kernel.

    Args:
        spec: What to attend.
        device: Where.
        interpret: As ``pallas_call`` takes it: for tests, where there is no TPU.
    """

    def __init__(self, spec: AttentionSpec, device: OpDevice, *, interpret: Any = False) -> None:
        super().__init__(spec, device)
        self._fixed = {
            "scale": spec.scale,
            "window": spec.window,
            "soft_cap": spec.soft_cap,
            "interpret": interpret,
        }

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        """Attend. [T, H, D]"""
        rows = batch.num_rows
        tensors = (
            q_THD,
            kv,
            batch.page_table_RP[:rows],
            batch.query_starts_R1[: rows + 1],
            batch.kv_lengths_R[:rows],
            *(() if sinks_H is None else (sinks_H,)),
        )
        fixed = self._fixed | {"max_query": batch.max_query}
        return xla_builder.call_jax(paged_attention, tensors, fixed)


def build_attention(spec: AttentionSpec, device: OpDevice) -> KernelAttention:
    """Build the provider."""
    return KernelAttention(spec, device)
