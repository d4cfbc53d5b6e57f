"""The reference of the op ``latent_attention``: queries absorb the keys' matrices, then attend.

Shapes: as in :mod:`headstock.ops.latent`; R rows, Q queries of a row, K gathered tokens of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.device import OpDevice
from headstock.ops.indexer import NO_TOKEN
from headstock.ops.pages_reference import Piece, causal, pieces_of, slots_of

if TYPE_CHECKING:
    from headstock.ops.latent import LatentSpec

TAG = "pages-latent-tx"
"""One layer's buffer is [page, token, feature]: the latent, then the rotated key."""

NUMBERS_AT_ONCE = 1 << 22
"""Most numbers that are gathered of chosen tokens at once."""


class ReferenceLatentAttention:
    """Causal attention over pages of latents."""

    def __init__(self, spec: LatentSpec, device: OpDevice) -> None:
        self.spec = spec
        preferred = tuple(dict.fromkeys((16, spec.page_size)))
        self.page_format = PageFormat(tag=TAG, page_sizes=preferred, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, X]."""
        return (num_pages, self.spec.page_size, self.spec.cached_size)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def write(self, latent_TC: Tensor, key_TE: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store latents and rotated keys at the batch's write slots."""
        cached_TX = torch.cat((latent_TC, key_TE), dim=-1).to(self.page_format.dtype)
        kv.view(-1, kv.shape[-1]).index_copy_(0, batch.write_slots_T[: len(cached_TX)], cached_TX)

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots. [S, X]"""
        return kv.view(-1, kv.shape[-1])[slots_S]

    def run(
        self,
        q_THQ: Tensor,
        up_HUC: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend; tokens that no host row covers get zeros. [T, H, V]"""
        key_size = self.spec.key_size
        plain_THN, turned_THE = q_THQ[..., :key_size], q_THQ[..., key_size:]
        absorbed_THC = torch.einsum("thn,hnc->thc", plain_THN, up_HUC[:, :key_size])
        q_THX = torch.cat((absorbed_THC, turned_THE), dim=-1)
        if chosen_Tk is None:
            sums_THC = self._attend(q_THX, kv, batch)
        else:
            sums_THC = self._attend_chosen(q_THX, chosen_Tk, kv, batch)
        return torch.einsum("thc,hvc->thv", sums_THC, up_HUC[:, key_size:]).contiguous()

    def _attend(self, q_THX: Tensor, kv: Tensor, batch: StepBatch) -> Tensor:
        """Return the weighted sums of latents of all tokens that queries see. [T, H, C]"""
        latent_size = self.spec.latent_size
        sums_THC = torch.zeros_like(q_THX[..., :latent_size])
        for piece in pieces_of(batch):
            q_RQHX = q_THX[piece.tokens].unflatten(0, (len(piece.lengths_R), -1))
            kv_RKX = self._gather(kv, piece)
            mask_RQK = causal(piece.lengths_R, q_RQHX.shape[1], kv_RKX.shape[1])
            k_R1KX = kv_RKX.unsqueeze(1).expand(-1, q_RQHX.shape[2], -1, -1)
            out_RHQC = functional.scaled_dot_product_attention(
                q_RQHX.transpose(1, 2),
                k_R1KX,
                k_R1KX[..., :latent_size],
                attn_mask=mask_RQK.unsqueeze(1),
                scale=self.spec.scale,
            )
            sums_THC[piece.tokens] = out_RHQC.transpose(1, 2).flatten(0, 1)
        return sums_THC

    def _attend_chosen(
        self, q_THX: Tensor, chosen_Tk: Tensor, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Return the weighted sums of chosen tokens' latents, some queries at a time. [T, H, C]"""
        page_size, flat = self.spec.page_size, kv.view(-1, kv.shape[-1])
        at_once = max(1, NUMBERS_AT_ONCE // (chosen_Tk.shape[1] * kv.shape[-1]))
        outs: list[Tensor] = []
        for begin in range(0, len(q_THX), at_once):
            chosen = chosen_Tk[begin : begin + at_once]
            rows_T1 = batch.row_of_token_T[begin : begin + len(chosen)].long().unsqueeze(1)
            # Where fewer are chosen stands the row's first token, masked.
            places = chosen.clamp(min=0).long()
            pages = batch.page_table_RP[rows_T1, places // page_size].long()
            slots = pages * page_size + places % page_size
            read = flat.index_select(0, slots.flatten()).unflatten(0, slots.shape)
            k_T1kX = read.to(self.spec.dtype).unsqueeze(1)
            out_T1HC = functional.scaled_dot_product_attention(
                q_THX[begin : begin + at_once].unsqueeze(1),
                k_T1kX,
                k_T1kX[..., : self.spec.latent_size],
                attn_mask=(chosen != NO_TOKEN)[:, None, None],
                scale=self.spec.scale,
            )
            outs.append(out_T1HC.squeeze(1))
        return torch.cat(outs)

    def _gather(self, kv: Tensor, piece: Piece) -> Tensor:
        """Return what is cached of the rows. [R, K, X]"""
        slots_RK = slots_of(piece, self.spec.page_size)
        gathered = kv.view(-1, kv.shape[-1]).index_select(0, slots_RK.flatten())
        return gathered.unflatten(0, slots_RK.shape).to(self.spec.dtype)
