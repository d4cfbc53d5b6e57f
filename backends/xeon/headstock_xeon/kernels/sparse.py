"""Choosing what attention reads: tokens, blocks of them, or entries that stand for them.

Shapes: as in :mod:`headstock.ops.indexer` and :mod:`headstock.ops.block_indexer`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.block_indexer import index_blocks
from headstock.ops.block_indexer_reference import ReferenceBlockIndexer
from headstock.ops.indexer import index_tokens
from headstock.ops.indexer_reference import ReferenceIndexer
from headstock.ops.offers import computes
from headstock_xeon.kernels.attention import ELEMENTS
from headstock_xeon.kernels.base import EIGHTS, WHOLE_PAGES, Native, rows_of_step
from headstock_xeon.stream import Stream, Word, strided

INDEXED = replace(WHOLE_PAGES, sizes={"head_dim": EIGHTS})
EACH = (1, 0)
"""Of choices that are no blocks: keys of one, and how many of the last are always chosen."""


class NativeIndexer(Native):
    """What both indexers do before they choose."""

    def _turn(
        self,
        q_THD: Tensor,
        k_TD: Tensor,
        cos_sin_LE: Tensor,
        pages: tuple[Word, ...],
        batch: StepBatch,
        *,
        is_interleaved: bool = False,
    ) -> Tensor:
        """Store rotated keys; return rotated queries. [T, H, D]"""
        q_THD = q_THD.contiguous()
        turned_THD = self._stream.empty(tuple(q_THD.shape))
        angles = (cos_sin_LE, cos_sin_LE.shape[1], int(is_interleaved))
        places = (batch.positions_T, batch.write_slots_T)
        given = (q_THD, *strided(k_TD), *angles, *places, turned_THD, *q_THD.shape[:2])
        self._stream.emit("index_prepare", *pages, *given)
        return turned_THD


@computes(index_tokens, INDEXED)
class NativeTokenIndexer(NativeIndexer, ReferenceIndexer):
    """The best tokens of each query."""

    def run(
        self,
        q_THD: Tensor,
        k_TD: Tensor,
        weights_TH: Tensor,
        cos_sin_LE: Tensor,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Rotate, store the keys, and choose. [T, k]"""
        spec, pages = self.spec, index_pages(kv, self.spec.page_size)
        is_interleaved = spec.is_interleaved
        q_THD = self._turn(q_THD, k_TD, cos_sin_LE, pages, batch, is_interleaved=is_interleaved)
        shape = (q_THD.shape[0], min(spec.num_chosen, batch.max_kv))
        given = (q_THD, weights_TH.contiguous())
        return choose(self._stream, pages, batch, given, shape, EACH, batch.max_kv)


@computes(index_blocks, INDEXED)
class NativeBlockIndexer(NativeIndexer, ReferenceBlockIndexer):
    """The best blocks of each head of a query, and the last ones."""

    def run(
        self, q_THD: Tensor, k_TD: Tensor, cos_sin_LE: Tensor, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Rotate, store the keys, and choose. [T, H, k]"""
        spec, pages = self.spec, index_pages(kv, self.spec.page_size)
        q_THD = self._turn(q_THD, k_TD, cos_sin_LE, pages, batch)
        most = min(spec.num_chosen, -(-batch.max_kv // spec.block_size))
        shape, blocks = (*q_THD.shape[:2], most), (spec.block_size, spec.num_local)
        return choose(self._stream, pages, batch, (q_THD, None), shape, blocks, batch.max_kv)


def index_pages(kv: Tensor, page_size: int, rate: int = 1) -> tuple[Word, ...]:
    """Return what instructions say of pages of keys, one for each ``rate`` tokens."""
    return (kv, ELEMENTS[kv.dtype], page_size, rate, kv.shape[-1])


def choose(
    stream: Stream,
    pages: tuple[Word, ...],
    batch: StepBatch,
    given: tuple[Tensor, Tensor | None],
    shape: tuple[int, ...],
    blocks: tuple[int, int],
    max_keys: int,
) -> Tensor:
    """Choose by queries, and by weights where these are ``given``. int32. [T, k] or [T, H, k]"""
    chosen = stream.empty(shape, torch.int32)
    sizes = (shape[-1], *blocks, *given[0].shape[:2], max_keys)
    stream.emit("index_choose", *pages, *rows_of_step(batch), *given, chosen, *sizes)
    return chosen
