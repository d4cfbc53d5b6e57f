"""The reference of the op ``attention``: gather a row's pages, mask, and attend by PyTorch.

Shapes: T tokens, R rows, Q queries of a row, L gathered kv tokens, P pages, H query heads, K key
and value heads, G = H / K query heads of a kv head, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.device import OpDevice
from headstock.ops.int8_pages import SCALE_BYTES
from headstock.ops.narrow_pages import NARROW
from headstock.ops.page_format import PageFormat
from headstock.ops.pages_reference import SCORES_AT_ONCE, Piece, pieces_of

if TYPE_CHECKING:
    from headstock.ops.attention import AttentionSpec, StepBatch

TAG = "pages-kv-thd"
"""One layer's buffer is [page, keys or values, token, kv head, feature]."""
NARROW_TAG = f"{TAG}-{{}}"
"""The same in 8 bits of a kind, with each head's scale in four bytes after its features."""


class ReferenceAttention:
    """Attention over pages, causal or not, with windows, sinks and soft cap."""

    def __init__(self, spec: AttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        preferred = tuple(dict.fromkeys((16, spec.page_size)))
        self._kind = kind = NARROW.get(spec.kv_dtype)
        self._is_whole = spec.is_bidirectional
        tag = TAG if kind is None else NARROW_TAG.format(kind.name)
        dtype = spec.kv_dtype if kind is None else kind.storage
        self.page_format = PageFormat(tag=tag, page_sizes=preferred, dtype=dtype)
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, 2, page_size, K, D], or D and the bytes of a scale."""
        spec = self.spec
        size = spec.head_dim + (0 if self._kind is None else SCALE_BYTES)
        return (num_pages, 2, spec.page_size, spec.num_kv_heads, size)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values at the batch's write slots."""
        slots_T = batch.write_slots_T[: k_TKD.shape[0]]
        keys_T, values_T = self._flat_slots(slots_T)
        flat = kv.view(-1, *kv.shape[3:])
        flat.index_copy_(0, keys_T, self._narrow(k_TKD))
        flat.index_copy_(0, values_T, self._narrow(v_TKD))

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots. [S, K, D] each."""
        flat = kv.view(-1, *kv.shape[3:])
        keys_S, values_S = self._flat_slots(slots_S)
        return self._widen(flat[keys_S]), self._widen(flat[values_S])

    def run(
        self,
        q_THD: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        sinks_H: Tensor | None = None,
        chosen_TKk: Tensor | None = None,
    ) -> Tensor:
        """Attend; tokens that no host row covers get zeros. [T, H, D]"""
        out_THD = torch.zeros_like(q_THD, memory_format=torch.contiguous_format)
        for piece in pieces_of(batch):
            q_RQHD = q_THD[piece.tokens].unflatten(0, (len(piece.lengths_R), -1))
            tokens_RL = self._tokens_read(piece, q_RQHD.shape[1])
            k_RLKD, v_RLKD = self._gather(kv, piece, tokens_RL)
            mask_R1QL = self._mask(piece.lengths_R, q_RQHD.shape[1], tokens_RL).unsqueeze(1)
            if chosen_TKk is not None:
                chosen_RQKk = chosen_TKk[piece.tokens].unflatten(0, q_RQHD.shape[:2])
                mask_R1QL = mask_R1QL & self._in_blocks(chosen_RQKk, mask_R1QL.shape[3])
            out_RQHD = self._attend(q_RQHD, k_RLKD, v_RLKD, mask_R1QL, sinks_H)
            out_THD[piece.tokens] = out_RQHD.flatten(0, 1)
        return out_THD

    def _narrow(self, x_TKD: Tensor) -> Tensor:
        """Return keys or values as pages hold them."""
        return x_TKD.to(self.page_format.dtype) if self._kind is None else self._kind.pack(x_TKD)

    def _widen(self, stored: Tensor) -> Tensor:
        """Return what pages hold as keys or values. [..., D]"""
        return stored if self._kind is None else self._kind.unpack(stored)

    def _flat_slots(self, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the keys and the values of token slots lie, in tokens of the buffer."""
        page_size = self.spec.page_size
        keys_S = slots_S + slots_S.div(page_size, rounding_mode="floor") * page_size
        return keys_S, keys_S + page_size

    def _tokens_read(self, piece: Piece, num_queries: int) -> Tensor:
        """Return the tokens of each row that its queries see any of, equally many a row. [R, L]

        Past a row's length stands the first of them again, since what lies there may be anything,
        and masking does not help: 0 * nan is nan. Likewise what lies before a window.
        """
        lengths_R1, num_tokens = piece.lengths_R.unsqueeze(1), piece.max_kv
        first_R1 = torch.zeros_like(lengths_R1)
        if self.spec.window is not None and not self._is_whole:
            first_R1 = self._first_seen(lengths_R1 - num_queries).clamp(min=0)
            num_tokens = min(num_tokens, self.spec.window + num_queries - 1)
        tokens_RL = first_R1 + torch.arange(num_tokens, device=lengths_R1.device)
        return torch.where(tokens_RL < lengths_R1, tokens_RL, first_R1)

    def _gather(self, kv: Tensor, piece: Piece, tokens_RL: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of some of the rows' tokens. [R, L, K, D] each."""
        page_size, dtype = self.spec.page_size, self.spec.dtype
        pages_RL = piece.page_table_RP.gather(1, (tokens_RL // page_size).long())
        slots_RL = pages_RL.long() * page_size + tokens_RL % page_size
        flat = kv.view(-1, *kv.shape[3:])
        k_RLKD, v_RLKD = (
            self._widen(flat.index_select(0, places_RL.flatten()))
            .unflatten(0, slots_RL.shape)
            .to(dtype)
            for places_RL in self._flat_slots(slots_RL)
        )
        return k_RLKD, v_RLKD

    def _mask(self, lengths_R: Tensor, num_queries: int, tokens_RL: Tensor) -> Tensor:
        """Return which of the gathered tokens each of a row's last queries sees. [R, Q, L]

        A token that stands for what lies past the row's length is masked at the place where it
        stands: there the row would have no token.
        """
        offsets_Q = torch.arange(num_queries, device=lengths_R.device) - num_queries
        positions_RQ1 = (lengths_R[:, None] + offsets_Q)[:, :, None]
        places_L = torch.arange(tokens_RL.shape[1], device=lengths_R.device)
        tokens_R1L = (tokens_RL[:, :1] + places_L).unsqueeze(1)
        limits_RQ1 = lengths_R[:, None, None] - 1 if self._is_whole else positions_RQ1
        mask_RQL = (tokens_R1L <= limits_RQ1).expand(-1, num_queries, -1)
        if self.spec.sees_both_sides and self.spec.window is not None:
            return mask_RQL & ((tokens_R1L - positions_RQ1).abs() < self.spec.window)
        if self.spec.window is not None:
            mask_RQL = mask_RQL & (tokens_R1L >= self._first_seen(positions_RQ1))
        return mask_RQL

    def _in_blocks(self, chosen_RQKk: Tensor, num_tokens: int) -> Tensor:
        """Return which of a row's first tokens lie in chosen blocks. [R, K, Q, L]"""
        size = self.spec.block_size
        num_blocks = -(-num_tokens // size)
        shape = (*chosen_RQKk.shape[:3], num_blocks + 1)
        # What stands for no block goes into a last one, which is cut off.
        is_none = (chosen_RQKk < 0) | (chosen_RQKk >= num_blocks)
        places_RQKk = torch.where(is_none, num_blocks, chosen_RQKk).long()
        marked = torch.zeros(shape, dtype=torch.bool, device=chosen_RQKk.device)
        marked_RQKB = marked.scatter(3, places_RQKk, torch.ones_like(places_RQKk, dtype=torch.bool))
        within_RQKL = marked_RQKB[..., :-1].repeat_interleave(size, dim=3)[..., :num_tokens]
        return within_RQKL.transpose(1, 2)

    def _first_seen(self, positions: Tensor) -> Tensor:
        """Return the first tokens that queries at ``positions`` see; under 0: all."""
        window = self.spec.window
        assert window is not None, "every token is seen"
        if self.spec.is_chunked:
            return positions // window * window
        return positions - window + 1

    def _attend(
        self,
        q_RQHD: Tensor,
        k_RLKD: Tensor,
        v_RLKD: Tensor,
        mask_RKQL: Tensor,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """Return the rows' outputs; a mask may be one for all kv heads, K = 1. [R, Q, H, D]"""
        q, k, v = (x.transpose(1, 2) for x in (q_RQHD, k_RLKD, v_RLKD))
        one = q.shape[2] == 1
        is_fused = sinks_H is None and self.spec.soft_cap is None
        if mask_RKQL.shape[1] > 1 and not (one and is_fused):
            mask_RKQL = mask_RKQL.repeat_interleave(q.shape[1] // mask_RKQL.shape[1], dim=1)
        if not is_fused:
            return self._attend_unfused(q, k, v, mask_RKQL, sinks_H).transpose(1, 2)
        scale = self.spec.scale
        if one:  # one query: its heads stand in for queries, so k and v are not copied
            q_RKGD = q.unflatten(1, (self.spec.num_kv_heads, -1)).squeeze(3)
            out_RKGD = functional.scaled_dot_product_attention(
                q_RKGD, k, v, attn_mask=mask_RKQL, scale=scale
            )
            return out_RKGD.flatten(1, 2).unsqueeze(1)
        out_RHQD = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask_RKQL, scale=scale, enable_gqa=True
        )
        return out_RHQD.transpose(1, 2)

    def _attend_unfused(
        self,
        q_RHQD: Tensor,
        k_RKLD: Tensor,
        v_RKLD: Tensor,
        mask_R1QL: Tensor,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """Attend step by step in float32, some queries at a time. [R, H, Q, D]"""
        per_head = q_RHQD.shape[1] // k_RKLD.shape[1]
        k_RHLD = k_RKLD.to(torch.float32).repeat_interleave(per_head, dim=1)
        v_RHLD = v_RKLD.to(torch.float32).repeat_interleave(per_head, dim=1)
        at_once = max(1, SCORES_AT_ONCE // k_RHLD[..., 0].numel())
        outs: list[Tensor] = []
        for q, mask in zip(q_RHQD.split(at_once, 2), mask_R1QL.split(at_once, 2), strict=True):
            scores = q.to(torch.float32) @ k_RHLD.transpose(2, 3) * self.spec.scale
            if self.spec.soft_cap is not None:
                scores = self.spec.soft_cap * torch.tanh(scores / self.spec.soft_cap)
            scores = scores.masked_fill(~mask, -torch.inf)
            if sinks_H is not None:
                column = sinks_H.to(torch.float32)[None, :, None, None].expand(*scores.shape[:3], 1)
                scores = torch.cat((scores, column), dim=-1)
            probs = scores.softmax(dim=-1)[..., : k_RHLD.shape[2]]
            outs.append((probs @ v_RHLD).to(q.dtype))
        return torch.cat(outs, dim=2)
