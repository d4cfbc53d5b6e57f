"""Attention over pages by ``npu_fused_infer_attention_score``.

Shapes: T tokens, R rows of a piece, Q queries of each, H query heads, K key and value heads, D head
size, B pages of the cache, P pages of a row, S tokens of a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from headstock.ops.attention import BIDIRECTIONAL, AttentionSpec, StepBatch
from headstock_ascend.device import AscendDevice, Updates
from headstock_ascend.pages import NO_MASK, RIGHT_DOWN_CAUSAL, HeadPages, causal_mask


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring rows of equally many queries: one call of the kernel.

    Attributes:
        rows: Which rows.
        tokens: Their tokens.
        lengths: Of their keys.
    """

    rows: slice
    tokens: slice
    lengths: list[int]


class PagedAttention(HeadPages):
    """Attention of one spec."""

    def __init__(self, spec: AttentionSpec, device: AscendDevice) -> None:
        super().__init__(spec)
        self._device = device
        self._pieces: list[Piece] = []
        is_causal = BIDIRECTIONAL not in spec.features
        self._hidden = causal_mask(device.torch_device) if is_causal else None

    def plan(self, batch: StepBatch) -> None:
        """Divide the step into calls. A captured call has baked in how wide the page table is."""
        assert batch.host_rows, "the kernel takes lengths from the host, and the batch has none"
        self._pieces = list(pieces_of(batch.host_rows))
        self.graph_key = (batch.page_table_RP.shape[1],)

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        """Attend. [T, H, D]"""
        assert sinks_H is None, "sinks were never declared"
        outs: list[Tensor] = []
        for index, piece in enumerate(self._pieces):
            self._device.note_updates(partial(self._updates, index))
            outs.append(self._attend(q_THD, kv, batch, piece))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _updates(self, index: int) -> Updates:
        """Return how long the rows of a call are in the step that was planned last."""
        return {"actual_seq_lengths_kv": self._pieces[index].lengths}

    def _attend(self, q_THD: Tensor, kv: Tensor, batch: StepBatch, piece: Piece) -> Tensor:
        spec = self.spec
        q_RQHD = q_THD[piece.tokens].unflatten(0, (len(piece.lengths), -1)).contiguous()
        keys_BSC, values_BSC = kv.flatten(3).unbind(0)
        # A row of one query sees all that its length says; the kernel takes no mask for it.
        hidden = self._hidden if q_RQHD.shape[1] > 1 else None
        out_RQHD, _ = torch.ops.npu.npu_fused_infer_attention_score(
            q_RQHD,
            keys_BSC,
            values_BSC,
            atten_mask=hidden,
            actual_seq_lengths_kv=piece.lengths,
            block_table=batch.page_table_RP[piece.rows].contiguous(),
            num_heads=spec.num_heads,
            num_key_value_heads=spec.num_kv_heads,
            scale=spec.scale,
            input_layout="BSND",
            sparse_mode=NO_MASK if hidden is None else RIGHT_DOWN_CAUSAL,
            block_size=spec.page_size,
        )
        return out_RQHD.flatten(0, 1)


def pieces_of(host_rows: Sequence[tuple[int, int]]) -> Iterator[Piece]:
    """Yield stretches of rows that have equally many queries."""
    row = token = 0
    while row < len(host_rows):
        queries, end = host_rows[row][0], row
        while end < len(host_rows) and host_rows[end][0] == queries:
            end += 1
        rows, tokens = slice(row, end), slice(token, token + (end - row) * queries)
        yield Piece(rows, tokens, [length for _, length in host_rows[rows]])
        row, token = end, tokens.stop


def build_attention(spec: AttentionSpec, device: AscendDevice) -> PagedAttention:
    """Build the provider."""
    return PagedAttention(spec, device)
