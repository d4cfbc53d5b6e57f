"""Attention over pages, natively: the layout, and the instructions of a step.

Shapes: T tokens, H query heads, K key/value heads, D head size, P pages, S token slots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.attention import (
    BIDIRECTIONAL,
    CHUNKED,
    NARROW_PAGES,
    AttentionSpec,
    StepBatch,
    attention,
)
from headstock.ops.int8_pages import SCALE_BYTES
from headstock.ops.narrow_pages import NARROW
from headstock_xeon.kernels.offers import EIGHTS, FLOAT32, Sizes, computes
from headstock_xeon.kernels.pages import ACCEPTED, PagedAttention
from headstock_xeon.stream import as_bits

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

TAG = "pages-kdt-vtd"
"""A page has for each key/value head its keys [D][tokens], then its values [tokens][D].

In 8 bits the scales of the tokens, float32, follow the keys and follow the values.
"""
FEATURES = frozenset({"sliding_window", "sinks", "soft_cap", BIDIRECTIONAL, CHUNKED}).union(
    *NARROW_PAGES.values()
)
MAX_GROUP = 64
"""Query heads that may share a key/value head: they are one tile."""
REQUIRES = replace(
    FLOAT32,
    layouts=frozenset({"float32", "bfloat16", "float16", *NARROW_PAGES}),
    features=FEATURES,
    sizes={
        "head_dim": EIGHTS,
        "page_size": ACCEPTED,
        "heads_per_kv_head": Sizes(at_most=MAX_GROUP),
    },
)


@computes(attention, REQUIRES)
class NativeAttention(PagedAttention):
    """Attention for one spec."""

    def __init__(self, spec: AttentionSpec, device: XeonDevice) -> None:
        self._kind = kind = NARROW.get(spec.kv_dtype)
        dtype = spec.kv_dtype if kind is None else kind.storage
        window = (spec.window or 0) * (-1 if CHUNKED in spec.features else 1)
        sizes = (spec.num_kv_heads, spec.head_dim)
        seen = (window, BIDIRECTIONAL in spec.features)
        super().__init__(spec, device, (TAG, dtype), (spec.num_heads, *sizes), sizes, seen)
        self._options = (as_bits(spec.scale), as_bits(spec.soft_cap or 0.0), window)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """Return [pages, K, 2, page size * D], or as many more as scales take."""
        spec = self.spec
        size = spec.head_dim + (0 if self._kind is None else SCALE_BYTES)
        return (num_pages, spec.num_kv_heads, 2, spec.page_size * size)

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values of the step's tokens into the pages of ``kv``."""
        k_TKD, v_TKD = _heads_together(k_TKD), _heads_together(v_TKD)
        given = (k_TKD, k_TKD.stride(0), v_TKD, v_TKD.stride(0), batch.write_slots_T)
        self._stream.emit("write", *self.pages(kv), *given, k_TKD.shape[0])

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        """Attend. [T, H, D]"""
        self._decide(batch)
        q_THD = _heads_together(q_THD)
        y_THD = self._stream.empty(q_THD.shape)
        table = (batch.page_table_RP, batch.page_table_RP.stride(0))
        given = (self._plan, q_THD, q_THD.stride(0), y_THD, sinks_H, *table)
        self._stream.emit("attend", *self.pages(kv), *given, *q_THD.shape[:2], *self._options)
        return y_THD

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots. [S, K, D] each"""
        spec = self.spec
        pages, offsets = slots_S // spec.page_size, slots_S % spec.page_size
        rows, size = torch.arange(len(slots_S)), spec.page_size * spec.head_dim
        keys_SKDT = kv[pages, :, 0, :size].unflatten(-1, (spec.head_dim, spec.page_size))
        values_SKTD = kv[pages, :, 1, :size].unflatten(-1, (spec.page_size, spec.head_dim))
        k_SKD, v_SKD = keys_SKDT[rows, :, :, offsets], values_SKTD[rows, :, offsets]
        if self._kind is None:
            return k_SKD, v_SKD
        scales_SK2T = kv[pages, :, :, size:].contiguous().view(torch.float32)
        k_scale_SK, v_scale_SK = scales_SK2T[rows, :, :, offsets].unbind(-1)
        k_SKD, v_SKD = (x_SKD.contiguous().view(spec.kv_dtype).float() for x_SKD in (k_SKD, v_SKD))
        return k_SKD * k_scale_SK.unsqueeze(-1), v_SKD * v_scale_SK.unsqueeze(-1)


def _heads_together(x_THD: Tensor) -> Tensor:
    """Return ``x_THD`` with a token's heads contiguous: itself, nearly always."""
    is_packed = x_THD.stride(-1) == 1 and x_THD.stride(-2) == x_THD.shape[-1]
    return x_THD if is_packed else x_THD.contiguous()
