"""Causal attention over pages [page, k or v, head, offset, feature].

Shapes: T tokens; of one row: Q tokens, P pages, L = P * page size; H query heads, K key/value
heads, G = H / K, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import AttentionSpec, PageFormat, StepBatch
from headstock.ops.device import OpDevice

PAGE_SIZES = (32, 16)


class PagedAttention:
    """Row by row, each gathering its own pages: simple, and right for every mix of rows."""

    def __init__(self, spec: AttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.page_format = PageFormat(
            tag="acme-pages-kho", page_sizes=PAGE_SIZES, dtype=spec.kv_dtype
        )
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        spec = self.spec
        return (num_pages, 2, spec.num_kv_heads, spec.page_size, spec.head_dim)

    def plan(self, batch: StepBatch) -> None:
        """Nothing to prepare. Yours may fill its own buffers here, and set ``graph_key``."""

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        pages_T, offsets_T = self._places(batch.write_slots_T[: len(k_TKD)])
        kv[pages_T, 0, :, offsets_T] = k_TKD.to(kv.dtype)
        kv[pages_T, 1, :, offsets_T] = v_TKD.to(kv.dtype)

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        pages_S, offsets_S = self._places(slots_S)
        return kv[pages_S, 0, :, offsets_S], kv[pages_S, 1, :, offsets_S]

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        # A captured step has no host rows; this device captures one token a row only.
        rows = batch.host_rows or [(1, batch.max_kv)] * batch.num_rows
        out_THD = torch.zeros_like(q_THD)
        begin = 0
        for row, (num_queries, max_kv) in enumerate(rows):
            some = slice(begin, begin + num_queries)
            table_P = batch.page_table_RP[row, : -(-max_kv // self.spec.page_size)]
            out_THD[some] = self._attend(q_THD[some], batch.positions_T[some], kv[table_P])
            begin += num_queries
        return out_THD

    def _attend(self, q_QHD: Tensor, positions_Q: Tensor, pages: Tensor) -> Tensor:
        """Return what Q tokens of one row make of its gathered ``pages``. [Q, H, D]"""
        k_KLD, v_KLD = pages.float().permute(1, 2, 0, 3, 4).flatten(2, 3)
        is_later_QL = torch.arange(k_KLD.shape[1], device=pages.device) > positions_Q[:, None]
        # Unwritten slots may hold NaN, and 0 * NaN is NaN: mask values, not only scores.
        is_unwritten_L1 = is_later_QL[-1, :, None]
        k_KLD, v_KLD = k_KLD.masked_fill(is_unwritten_L1, 0), v_KLD.masked_fill(is_unwritten_L1, 0)
        q_KGQD = q_QHD.float().unflatten(1, (self.spec.num_kv_heads, -1)).permute(1, 2, 0, 3)
        scores_KGQL = q_KGQD @ k_KLD.transpose(1, 2).unsqueeze(1) * self.spec.scale
        scores_KGQL = scores_KGQL.masked_fill(is_later_QL, -torch.inf)
        out_KGQD = scores_KGQL.softmax(-1) @ v_KLD.unsqueeze(1)
        return out_KGQD.permute(2, 0, 1, 3).flatten(1, 2).to(q_QHD.dtype)

    def _places(self, slots_T: Tensor) -> tuple[Tensor, Tensor]:
        return slots_T // self.spec.page_size, slots_T % self.spec.page_size
