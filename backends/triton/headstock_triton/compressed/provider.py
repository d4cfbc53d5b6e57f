"""The provider of attention to a window and to entries: pages, and the launches of a layer.

Shapes: as in :mod:`headstock.ops.compressed`.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.compressed import CompressedSpec, EntryPages
from headstock_triton.attention.decode import LOG2_E
from headstock_triton.compressed.attend import attend_entries, merge_entries, store_vectors
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

TAG = "pages-shared-td-triton"
"""One layer's buffer is [page, token, feature]."""
MOST_HEADS = 64
"""Heads of a program, at most: each program reads what they have in common."""
MERGED_TOGETHER = 8
"""Partials of a query that the merge adds up at a time."""
MIN_ITEM = 64
"""Least tokens and entries of an item."""


class EntryAttention:
    """A window of tokens, and entries, in one softmax."""

    def __init__(self, spec: CompressedSpec, device: OpDevice) -> None:
        self.spec = spec
        preferred = tuple(dict.fromkeys((64, 128, 32, 16, spec.page_size)))
        self.page_format = PageFormat(tag=TAG, page_sizes=preferred, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()
        self._target = target = Target.of(device)
        has_room = target.has_large_blocks and spec.dtype != torch.float32
        most = MOST_HEADS if has_room else 16
        self._heads = min(most, max(16, next_power_of_2(spec.num_heads)))
        self._head_blocks = cdiv(spec.num_heads, self._heads)
        self._spread = max(1, target.num_sms // self._head_blocks)
        # Float32 is not multiplied by tensor cores, and large blocks of it take minutes to compile.
        self._tile = 16 if spec.dtype == torch.float32 else 32
        shape = (self._spread, spec.num_heads)
        where = device.torch_device
        self._partial_lse = torch.zeros(shape, dtype=torch.float32, device=where)
        self._partial_o = torch.zeros((*shape, spec.head_dim), dtype=torch.float32, device=where)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, D]."""
        return (num_pages, self.spec.page_size, self.spec.head_dim)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: grids follow from the batch's shape."""

    def write(self, kv_TD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store the vectors of the step's tokens, rotated."""
        kv_TD = kv_TD if kv_TD.stride(1) == 1 else kv_TD.contiguous()
        num_tokens, size = kv_TD.shape
        store_vectors[(num_tokens,)](
            kv_TD,
            kv,
            batch.write_slots_T,
            kv_TD.stride(0),
            D=size,
            BLOCK_D=next_power_of_2(size),
            **self._target.launch(4),
        )

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return vectors at token slots. [S, D]"""
        return kv.view(-1, kv.shape[-1]).index_select(0, slots_S)

    def run(
        self,
        q_THD: Tensor,
        sinks_H: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        entries: EntryPages | None = None,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend. [T, H, D]"""
        spec, num_tokens = self.spec, q_THD.shape[0]
        q_THD, out_THD = q_THD.contiguous(), torch.empty_like(q_THD)
        most = batch.max_kv // spec.rate if spec.rate else 0
        table, pages = batch.page_table_RP, kv
        if entries is not None:
            table, pages = entries.batch.page_table_RP, entries.pages
        if chosen_Tk is not None:
            most = chosen_Tk.shape[1]
        items = self._items(num_tokens, min(spec.window, batch.max_kv) + most)
        sizes: dict[str, Any] = {
            "HEADS": spec.num_heads,
            "D": spec.head_dim,
            "BLOCK_D": max(16, next_power_of_2(spec.head_dim)),
        }
        attend_entries[(num_tokens * items, self._head_blocks)](
            q_THD,
            sinks_H,
            kv,
            pages,
            batch.row_of_token_T if chosen_Tk is None else chosen_Tk,
            batch.page_table_RP,
            table,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            self._partial_o,
            self._partial_lse,
            out_THD,
            spec.scale * LOG2_E,
            batch.page_table_RP.stride(0),
            table.stride(0),
            most,
            items,
            PAGE=spec.page_size,
            WINDOW=spec.window,
            RATE=spec.rate,
            IS_CHOSEN=chosen_Tk is not None,
            IS_WHOLE=items == 1,
            BLOCK_M=self._heads,
            BLOCK_N=self._tile,
            STAGES=self._target.stages(2 if self._heads > 16 else 1),
            **sizes,
            **self._target.launch(8 if self._heads > 16 else 4),
        )
        if items > 1:
            merge_entries[(num_tokens, spec.num_heads)](
                batch.counts,
                sinks_H,
                self._partial_o,
                self._partial_lse,
                out_THD,
                items,
                BLOCK_S=MERGED_TOGETHER,
                **sizes,
                **self._target.launch(4),
            )
        return out_THD

    def _items(self, num_tokens: int, most: int) -> int:
        """Return how many programs share what a query reads, of ``most`` at most."""
        return max(1, min(self._spread // num_tokens, cdiv(most, MIN_ITEM)))
