"""The reference of the op ``index_tokens``: all scores of a row, then the highest.

Shapes: as in :mod:`headstock.ops.indexer`; R rows, Q queries of a row, K gathered tokens of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    from headstock.ops.indexer import IndexerSpec


class ReferenceIndexer(KeyPages):
    """Scores in float32 of every token that a query sees."""

    def __init__(self, spec: IndexerSpec, device: OpDevice) -> None:
        super().__init__(spec.page_size, spec.head_dim, spec.kv_dtype)
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
        """Rotate, store the keys, and choose; tokens that no host row covers choose none. [T, k]"""
        both = torch.cat((q_THD, k_TD.unsqueeze(1)), dim=1)
        is_interleaved = self.spec.is_interleaved
        both = rotate(both, batch.positions_T, cos_sin_LE, is_interleaved=is_interleaved)
        self.write(both[:, -1], kv, batch)
        most = min(self.spec.num_chosen, batch.max_kv)
        shape = (len(k_TD), most)
        chosen_Tk = torch.full(shape, NONE_CHOSEN, dtype=torch.int32, device=k_TD.device)
        for piece in pieces_of(batch):
            where = (len(piece.lengths_R), -1)
            q_RQHD = both[piece.tokens, :-1].unflatten(0, where).float()
            weights_RQH = weights_TH[piece.tokens].unflatten(0, where).float()
            chosen_RQk = self._choose(q_RQHD, weights_RQH, kv, piece)[..., :most]
            chosen_Tk[piece.tokens, : chosen_RQk.shape[2]] = chosen_RQk.flatten(0, 1)
        return chosen_Tk

    def _choose(self, q_RQHD: Tensor, weights_RQH: Tensor, kv: Tensor, piece: Piece) -> Tensor:
        """Return what the queries of rows choose, some queries at a time. [R, Q, k]"""
        slots_RK = slots_of(piece, self.spec.page_size)
        keys = kv.view(-1, kv.shape[-1]).index_select(0, slots_RK.flatten())
        k_RKD = keys.unflatten(0, slots_RK.shape).float()
        mask_RQK = causal(piece.lengths_R, q_RQHD.shape[1], k_RKD.shape[1])
        count = min(self.spec.num_chosen, k_RKD.shape[1])
        at_once = max(1, SCORES_AT_ONCE // (slots_RK.numel() * self.spec.num_heads))
        parts = (x.split(at_once, dim=1) for x in (q_RQHD, weights_RQH, mask_RQK))
        outs: list[Tensor] = []
        for q, weights, mask in zip(*parts, strict=True):
            scores_RQHK = torch.einsum("rqhd,rkd->rqhk", q, k_RKD).relu()
            scores_RQK = torch.einsum("rqh,rqhk->rqk", weights, scores_RQHK)
            best = scores_RQK.masked_fill(~mask, -torch.inf).topk(count, dim=2)
            outs.append(best.indices.masked_fill(best.values == -torch.inf, NONE_CHOSEN).int())
        return torch.cat(outs, dim=1)
