"""The reference of the op ``index_blocks``: all scores of a row, and the best blocks by them.

Shapes: as in :mod:`headstock.ops.block_indexer`; R rows, Q queries of a row, K gathered tokens of
it, B blocks of these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.attention import StepBatch
from headstock.ops.device import OpDevice
from headstock.ops.key_pages_reference import KeyPages
from headstock.ops.pages_reference import (
    NONE_CHOSEN,
    SCORES_AT_ONCE,
    Piece,
    causal,
    pieces_of,
    slots_of,
)
from headstock.ops.rotary import rotate

if TYPE_CHECKING:
    from headstock.ops.block_indexer import BlockIndexerSpec


class ReferenceBlockIndexer(KeyPages):
    """Scores in float32 of every token that a query sees."""

    def __init__(self, spec: BlockIndexerSpec, device: OpDevice) -> None:
        super().__init__(spec.page_size, spec.head_dim, spec.kv_dtype)
        self.spec = spec

    def run(
        self, q_THD: Tensor, k_TD: Tensor, cos_sin_LE: Tensor, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Rotate, store the keys, and choose; tokens that no host row covers choose none."""
        both = torch.cat((q_THD, k_TD.unsqueeze(1)), dim=1)
        both = rotate(both, batch.positions_T, cos_sin_LE, is_interleaved=False)
        self.write(both[:, -1], kv, batch)
        most = min(self.spec.num_chosen, self._num_blocks(batch.max_kv))
        shape = (*q_THD.shape[:2], most)
        chosen_THk = torch.full(shape, NONE_CHOSEN, dtype=torch.int32, device=k_TD.device)
        for piece in pieces_of(batch):
            q_RQHD = both[piece.tokens, :-1].unflatten(0, (len(piece.lengths_R), -1)).float()
            chosen_RQHk = self._choose(q_RQHD, kv, piece)[..., :most]
            chosen_THk[piece.tokens, :, : chosen_RQHk.shape[3]] = chosen_RQHk.flatten(0, 1)
        return chosen_THk

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.spec.block_size)

    def _choose(self, q_RQHD: Tensor, kv: Tensor, piece: Piece) -> Tensor:
        """Return what the queries of rows choose, some queries at a time. [R, Q, H, k]"""
        slots_RK = slots_of(piece, self.spec.page_size)
        keys = kv.view(-1, kv.shape[-1]).index_select(0, slots_RK.flatten())
        k_RKD = keys.unflatten(0, slots_RK.shape).float()
        num_queries = q_RQHD.shape[1]
        mask_RQK = causal(piece.lengths_R, num_queries, k_RKD.shape[1])
        offsets_Q = torch.arange(num_queries, device=kv.device) - num_queries
        positions_RQ = piece.lengths_R[:, None] + offsets_Q
        at_once = max(1, SCORES_AT_ONCE // (slots_RK.numel() * self.spec.num_heads))
        parts = (x.split(at_once, dim=1) for x in (q_RQHD, mask_RQK, positions_RQ))
        outs = [
            self._best(torch.einsum("rqhd,rkd->rqhk", q, k_RKD), mask, at)
            for q, mask, at in zip(*parts, strict=True)
        ]
        return torch.cat(outs, dim=1)

    def _best(self, scores_RQHK: Tensor, mask_RQK: Tensor, positions_RQ: Tensor) -> Tensor:
        """Return the blocks of the highest scores, the last ones first. [R, Q, H, k]"""
        size = self.spec.block_size
        scores_RQHK = scores_RQHK.masked_fill(~mask_RQK.unsqueeze(2), -torch.inf)
        num_blocks = self._num_blocks(scores_RQHK.shape[3])
        missing = num_blocks * size - scores_RQHK.shape[3]
        padded = functional.pad(scores_RQHK, (0, missing), value=-torch.inf)
        scores_RQHB = padded.unflatten(3, (num_blocks, size)).amax(dim=4)
        blocks_B = torch.arange(num_blocks, device=scores_RQHB.device)
        own_RQ1 = (positions_RQ // size).unsqueeze(2)
        is_local_RQB = (blocks_B <= own_RQ1) & (blocks_B > own_RQ1 - self.spec.num_local)
        scores_RQHB = scores_RQHB.masked_fill(is_local_RQB.unsqueeze(2), torch.inf)
        best = scores_RQHB.topk(min(self.spec.num_chosen, num_blocks), dim=3)
        return best.indices.masked_fill(best.values == -torch.inf, NONE_CHOSEN).int()
