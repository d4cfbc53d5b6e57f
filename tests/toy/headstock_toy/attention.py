"""The toy's attention: pages in head-major order, every token a row of its own.

Shapes: T tokens, L gathered kv tokens, P pages of a row, H query heads, K key/value heads, D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import AttentionSpec, PageFormat, StepBatch
from headstock.ops.device import OpDevice

PAGE_SIZES = (24, 5)
TAG = "toy-kv-pages-htd"
TOKENS_AT_ONCE = 32


class ToyAttention:
    """Plain causal attention over pages of 24 or 5 tokens."""

    def __init__(self, spec: AttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=TAG, page_sizes=PAGE_SIZES, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()
        self._planned: StepBatch | None = None

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[2, pages, K, page_size, D]"""
        spec = self.spec
        return (2, num_pages, spec.num_kv_heads, spec.page_size, spec.head_dim)

    def plan(self, batch: StepBatch) -> None:
        assert batch.num_rows <= self.spec.max_rows, "more rows than the spec allows"
        assert batch.num_tokens <= self.spec.max_tokens, "more tokens than the spec allows"
        self._planned = batch
        self.graph_key = (int(batch.max_kv > 256),)

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        pages_T, offsets_T = self._places(batch.write_slots_T[: len(k_TKD)])
        kv[0].transpose(1, 2).index_put_((pages_T, offsets_T), k_TKD.to(kv.dtype))
        kv[1].transpose(1, 2).index_put_((pages_T, offsets_T), v_TKD.to(kv.dtype))

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        pages_S, offsets_S = self._places(slots_S)
        return kv[0][pages_S, :, offsets_S], kv[1][pages_S, :, offsets_S]

    def _places(self, slots_T: Tensor) -> tuple[Tensor, Tensor]:
        page_size = self.spec.page_size
        return slots_T.div(page_size, rounding_mode="floor"), slots_T.remainder(page_size)

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        assert sinks_H is None, "sinks were never declared"
        assert self._planned is not None, "run without a plan"
        tokens = range(0, batch.num_tokens, TOKENS_AT_ONCE)
        return torch.cat([self._attend(q_THD, kv, batch, begin) for begin in tokens])

    def _attend(self, q_THD: Tensor, kv: Tensor, batch: StepBatch, begin: int) -> Tensor:
        spec = self.spec
        some = slice(begin, min(begin + TOKENS_AT_ONCE, batch.num_tokens))
        num_pages = -(-batch.max_kv // spec.page_size)
        rows_T = batch.row_of_token_T[some]
        table_TP = batch.page_table_RP.index_select(0, rows_T)[:, :num_pages]
        lengths_T1 = batch.positions_T[some].unsqueeze(1) + 1
        k_TKLD, v_TKLD = self._gather(kv, table_TP, lengths_T1)
        q_TKGD = q_THD[some].unflatten(1, (spec.num_kv_heads, -1)).float()
        scores_TKGL = q_TKGD @ k_TKLD.transpose(2, 3) * spec.scale
        is_past_TL = torch.arange(k_TKLD.shape[2]) >= lengths_T1
        scores_TKGL = scores_TKGL.masked_fill(is_past_TL[:, None, None], -torch.inf)
        return (scores_TKGL.softmax(-1) @ v_TKLD).flatten(1, 2).to(q_THD.dtype)

    def _gather(self, kv: Tensor, table_TP: Tensor, lengths_T1: Tensor) -> tuple[Tensor, Tensor]:
        found = kv.index_select(1, table_TP.flatten()).unflatten(1, table_TP.shape).float()
        k_TKLD, v_TKLD = found.transpose(2, 3).flatten(3, 4).unbind(0)
        is_past_TL = torch.arange(k_TKLD.shape[2]) >= lengths_T1
        is_past_T1L1 = is_past_TL[:, None, :, None]
        return k_TKLD.masked_fill(is_past_T1L1, 0), v_TKLD.masked_fill(is_past_T1L1, 0)


def build_attention(spec: AttentionSpec, device: OpDevice) -> ToyAttention:
    return ToyAttention(spec, device)
