"""Pages of keys and values as CANN's kernels take them, and the mask that they know causality by.

Shapes: T tokens, K key and value heads, D head size, S token slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import AttentionSpec, PageFormat, StepBatch

TAG = "ascend-pages-kv-thd"
"""One layer's buffer is [keys or values, page, token, kv head, feature]."""

PAGE_SIZES = (128, 256, 512)
"""The kernels take multiples of 128, up to 512, where rows have several queries."""

CAUSAL_SIZE = 2048
"""Rows and columns of the causal mask that the kernels take, whatever the length of rows."""

NO_MASK, RIGHT_DOWN_CAUSAL, BAND = 0, 3, 4
"""Modes of the kernels: all of a row's tokens are seen; those up to the query's own place are; of
those some before it and some behind it, as many as two numbers say."""


def causal_mask(where: torch.device) -> Tensor:
    """Return what a query does not see, in the one size that the kernels take. bool"""
    return torch.ones(CAUSAL_SIZE, CAUSAL_SIZE, dtype=torch.bool, device=where).triu(1)


class HeadPages:
    """Keys and values of whole heads: one tensor each, both in one buffer."""

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=TAG, page_sizes=PAGE_SIZES, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[2, pages, page_size, K, D]"""
        spec = self.spec
        return (2, num_pages, spec.page_size, spec.num_kv_heads, spec.head_dim)

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values at the batch's write slots."""
        keys, values = kv.unbind(0)
        store(k_TKD.to(kv.dtype), v_TKD.to(kv.dtype), keys, values, batch)

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots. [S, K, D] each."""
        keys, values = kv.flatten(1, 2).unbind(0)
        return keys.index_select(0, slots_S), values.index_select(0, slots_S)


def store(k_TKD: Tensor, v_TKE: Tensor, keys: Tensor, values: Tensor, batch: StepBatch) -> None:
    """Write tokens into pages [pages, page size, K, D] and [pages, page size, K, E]."""
    torch.ops.npu.npu_scatter_pa_kv_cache(
        k_TKD.contiguous(),
        v_TKE.contiguous(),
        keys,
        values,
        batch.write_slots_T[: k_TKD.shape[0]],
        cache_mode="Norm",
    )
