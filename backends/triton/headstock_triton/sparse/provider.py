"""The providers of both indexers: pages of keys, and the launches of a layer.

Shapes: as in :mod:`headstock.ops.indexer` and :mod:`headstock.ops.block_indexer`.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.block_indexer import BlockIndexerSpec
from headstock.ops.indexer import NO_TOKEN, IndexerSpec
from headstock_triton.sparse.choose import choose_kernel
from headstock_triton.sparse.scores import (
    score_blocks_kernel,
    score_tokens_kernel,
    turn_kernel,
)
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.device import OpDevice

TAG = "pages-index-td-triton"
"""The layout's tag: a page is [tokens, D]."""
PAGE_SIZES = (64, 128, 32, 16)

SCORES_AT_ONCE = 1 << 27
"""Most scores that are held at once: 512 MiB. Longer steps choose for some queries at a time."""
TOKENS = 64
"""Tokens of a tile."""
PROGRAMS_PER_SM = 4
LOOKED_AT = 2048
"""Scores that a program compares together."""


def programs_of(target: Target, num_tokens: int, tiles: int) -> int:
    """Return how many programs share the tiles of each of ``num_tokens`` queries."""
    return max(1, min(tiles, cdiv(target.num_sms * PROGRAMS_PER_SM, num_tokens)))


class PagedIndexer:
    """What both indexers share.

    Args:
        spec: Of the layers.
        device: Where they run.
        size: Tokens of what is chosen.
    """

    def __init__(self, spec: IndexerSpec | BlockIndexerSpec, device: OpDevice, size: int) -> None:
        self.page_format = PageFormat(tag=TAG, page_sizes=PAGE_SIZES, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()
        self._shape = spec
        self._size = size
        self._target = Target.of(device)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, D]."""
        return (num_pages, self._shape.page_size, self._shape.head_dim)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: grids follow from the batch's shape."""

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return rotated keys at token slots. [S, D]"""
        return kv.view(-1, kv.shape[-1]).index_select(0, slots_S)

    def _turn(
        self,
        q_THD: Tensor,
        k_TD: Tensor,
        cos_sin_LE: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        is_interleaved: bool,
    ) -> Tensor:
        """Store rotated keys; return rotated queries. [T, H, D]"""
        num_tokens, num_heads, size = q_THD.shape
        if q_THD.stride()[1:] != (size, 1):
            q_THD = q_THD.contiguous()
        k_TD = k_TD if k_TD.stride(1) == 1 else k_TD.contiguous()
        turned_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        rotary_size = self._shape.rotary_size
        heads = min(8, next_power_of_2(num_heads))
        turn_kernel[(num_tokens, 1 + cdiv(num_heads, heads))](
            q_THD,
            k_TD,
            cos_sin_LE,
            batch.positions_T,
            batch.write_slots_T,
            turned_THD,
            kv,
            q_THD.stride(0),
            k_TD.stride(0),
            HEADS=num_heads,
            D=size,
            E=rotary_size,
            IS_INTERLEAVED=is_interleaved,
            BLOCK_H=heads,
            BLOCK_F=next_power_of_2(rotary_size // 2),
            BLOCK_D=next_power_of_2(size - rotary_size),
            **self._target.launch(4),
        )
        return turned_THD

    def _at_once(self, lines: int, blocks: int) -> int:
        """Return for how many queries of ``lines`` scores each to choose together."""
        return max(1, SCORES_AT_ONCE // (lines * blocks))

    def _sizes(self) -> dict[str, int]:
        spec = self._shape
        return {
            "HEADS": spec.num_heads,
            "D": spec.head_dim,
            "K": spec.num_chosen,
            "PAGE": spec.page_size,
            "BLOCK_H": max(16, next_power_of_2(spec.num_heads)),
            "BLOCK_D": max(16, next_power_of_2(spec.head_dim)),
        }

    def _choose(
        self, scores: Tensor, chosen: Tensor, batch: StepBatch, begin: int, count: int, heads: int
    ) -> None:
        choose_kernel[(count, heads)](
            scores,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            chosen,
            begin,
            scores.shape[-1],
            chosen.shape[-1],
            HEADS=heads,
            SIZE=self._size,
            IS_WHOLE=False,
            K=self._shape.num_chosen,
            NONE=NO_TOKEN,
            BLOCK_K=next_power_of_2(chosen.shape[-1]),
            BLOCK=min(LOOKED_AT, max(128, next_power_of_2(scores.shape[-1]))),
            **self._target.launch(8),
        )


class TokenIndexer(PagedIndexer):
    """The op ``index_tokens`` on one target."""

    def __init__(self, spec: IndexerSpec, device: OpDevice) -> None:
        super().__init__(spec, device, size=1)
        self.spec = spec

    def run(
        self,
        q_THD: Tensor,
        k_TD: Tensor,
        weights_TH: Tensor,
        cos_sin_LE: Tensor,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """See :meth:`headstock.ops.indexer.IndexerProvider.run`. [T, k]"""
        spec, num_tokens = self.spec, len(k_TD)
        is_interleaved = spec.is_interleaved
        turned = self._turn(q_THD, k_TD, cos_sin_LE, kv, batch, is_interleaved=is_interleaved)
        weights_TH = weights_TH if weights_TH.stride(1) == 1 else weights_TH.contiguous()
        most = min(spec.num_chosen, batch.max_kv)
        chosen_Tk = torch.empty((num_tokens, most), dtype=torch.int32, device=kv.device)
        # Where no query sees more than it may choose, nothing is scored.
        length = batch.max_kv if batch.max_kv > spec.num_chosen else 1
        at_once = min(num_tokens, self._at_once(1, length))
        scores = torch.empty((at_once, length), dtype=torch.float32, device=kv.device)
        for begin in range(0, num_tokens, at_once):
            count = min(at_once, num_tokens - begin)
            if length > 1:
                self._score(turned, weights_TH, kv, batch, scores, begin, count)
            self._choose(scores, chosen_Tk, batch, begin, count, heads=1)
        return chosen_Tk

    def _score(
        self,
        turned: Tensor,
        weights: Tensor,
        kv: Tensor,
        batch: StepBatch,
        scores: Tensor,
        begin: int,
        count: int,
    ) -> None:
        programs = programs_of(self._target, count, cdiv(scores.shape[1], TOKENS))
        score_tokens_kernel[(count, programs)](
            turned,
            weights,
            kv,
            batch.page_table_RP,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            scores,
            begin,
            weights.stride(0),
            batch.page_table_RP.stride(0),
            scores.stride(0),
            RATE=1,
            BLOCK_N=TOKENS,
            **self._sizes(),
            **self._target.launch(4),
        )


class BlockIndexer(PagedIndexer):
    """The op ``index_blocks`` on one target."""

    def __init__(self, spec: BlockIndexerSpec, device: OpDevice) -> None:
        super().__init__(spec, device, size=spec.block_size)
        self.spec = spec

    def run(
        self, q_THD: Tensor, k_TD: Tensor, cos_sin_LE: Tensor, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """See :meth:`headstock.ops.block_indexer.BlockIndexerProvider.run`. [T, H, k]"""
        spec, (num_tokens, heads, _) = self.spec, q_THD.shape
        turned = self._turn(q_THD, k_TD, cos_sin_LE, kv, batch, is_interleaved=False)
        blocks = cdiv(batch.max_kv, spec.block_size)
        shape = (num_tokens, heads, min(spec.num_chosen, blocks))
        chosen_THk = torch.empty(shape, dtype=torch.int32, device=kv.device)
        length = blocks if blocks > spec.num_chosen else 1
        at_once = min(num_tokens, self._at_once(heads, length))
        scores = torch.empty((at_once, heads, length), dtype=torch.float32, device=kv.device)
        for begin in range(0, num_tokens, at_once):
            count = min(at_once, num_tokens - begin)
            if length > 1:
                self._score(turned, kv, batch, scores, begin, count)
            self._choose(scores, chosen_THk, batch, begin, count, heads=heads)
        return chosen_THk

    def _score(
        self, turned: Tensor, kv: Tensor, batch: StepBatch, scores: Tensor, begin: int, count: int
    ) -> None:
        spec = self.spec
        sizes: dict[str, Any] = self._sizes()
        block = next_power_of_2(spec.block_size)
        tile = max(1, TOKENS // block)
        programs = programs_of(self._target, count, cdiv(scores.shape[2], tile))
        score_blocks_kernel[(count, programs)](
            turned,
            kv,
            batch.page_table_RP,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            scores,
            begin,
            batch.page_table_RP.stride(0),
            scores.stride(1),
            SIZE=spec.block_size,
            LOCAL=spec.num_local,
            BLOCKS=tile,
            BLOCK_S=block,
            **sizes,
            **self._target.launch(4),
        )
