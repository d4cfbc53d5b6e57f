"""The reference of the op ``latent_attention``: queries absorb the keys' matrices, then attend.

Shapes: as in :mod:`headstock.ops.latent`; R rows, Q queries of a row, K gathered tokens of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.attention import KVLayout, StepBatch
from headstock.ops.attention_reference import Piece, pieces_of
from headstock.ops.device import OpDevice
from headstock.ops.latent import LatentSpec

TAG = "pages-latent-tx"
"""One layer's buffer is [page, token, feature]: the latent, then the rotated key."""


class ReferenceLatentAttention:
    """Causal attention over pages of latents."""

    def __init__(self, spec: LatentSpec, device: OpDevice) -> None:
        self.spec = spec
        preferred = tuple(dict.fromkeys((16, spec.page_size)))
        self.layout = KVLayout(tag=TAG, page_sizes=preferred, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, X]."""
        return (num_pages, self.spec.page_size, self.spec.cached_size)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: every layer reads the batch itself."""

    def write(self, latent_TC: Tensor, key_TE: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store latents and rotated keys at the batch's write slots."""
        cached_TX = torch.cat((latent_TC, key_TE), dim=-1).to(self.layout.dtype)
        kv.view(-1, kv.shape[-1]).index_copy_(0, batch.write_slots_T[: len(cached_TX)], cached_TX)

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots. [S, X]"""
        return kv.view(-1, kv.shape[-1])[slots_S]

    def run(self, q_THQ: Tensor, up_HUC: Tensor, kv: Tensor, batch: StepBatch) -> Tensor:
        """Attend; tokens that no host row covers get zeros. [T, H, V]"""
        key_size, latent_size = self.spec.key_size, self.spec.latent_size
        plain_THN, turned_THE = q_THQ[..., :key_size], q_THQ[..., key_size:]
        absorbed_THC = torch.einsum("thn,hnc->thc", plain_THN, up_HUC[:, :key_size])
        q_THX = torch.cat((absorbed_THC, turned_THE), dim=-1)
        sums_THC = torch.zeros_like(absorbed_THC)
        for piece in pieces_of(batch):
            q_RQHX = q_THX[piece.tokens].unflatten(0, (len(piece.lengths_R), -1))
            kv_RKX = self._gather(kv, piece)
            mask_RQK = _causal(piece.lengths_R, q_RQHX.shape[1], kv_RKX.shape[1])
            k_R1KX = kv_RKX.unsqueeze(1).expand(-1, q_RQHX.shape[2], -1, -1)
            out_RHQC = functional.scaled_dot_product_attention(
                q_RQHX.transpose(1, 2),
                k_R1KX,
                k_R1KX[..., :latent_size],
                attn_mask=mask_RQK.unsqueeze(1),
                scale=self.spec.scale,
            )
            sums_THC[piece.tokens] = out_RHQC.transpose(1, 2).flatten(0, 1)
        return torch.einsum("thc,hvc->thv", sums_THC, up_HUC[:, key_size:]).contiguous()

    def _gather(self, kv: Tensor, piece: Piece) -> Tensor:
        """Return what is cached of the rows. [R, K, X]

        Past a row's length stands its first token again, since what lies there may be anything,
        and masking does not help: 0 * nan is nan.
        """
        page_size = self.spec.page_size
        pages_RP = piece.page_table_RP[:, : -(-piece.max_kv // page_size)].long()
        offsets = torch.arange(page_size, device=kv.device)
        slots_RK = (pages_RP.unsqueeze(2) * page_size + offsets).flatten(1)
        tokens_K = torch.arange(slots_RK.shape[1], device=kv.device)
        slots_RK = torch.where(tokens_K < piece.lengths_R.unsqueeze(1), slots_RK, slots_RK[:, :1])
        gathered = kv.view(-1, kv.shape[-1]).index_select(0, slots_RK.flatten())
        return gathered.unflatten(0, slots_RK.shape).to(self.spec.dtype)


def _causal(lengths_R: Tensor, num_queries: int, num_tokens: int) -> Tensor:
    """Return which of a row's tokens each of its queries, the last ones, sees. [R, Q, K]"""
    tokens_K = torch.arange(num_tokens, device=lengths_R.device)
    offsets_Q = torch.arange(num_queries, device=lengths_R.device) - num_queries
    return tokens_K <= (lengths_R[:, None] + offsets_Q)[:, :, None]
