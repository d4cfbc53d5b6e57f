"""Attention over pages in int8: whole numbers, with a float32 scale for each token and head.

The kernel widens such pages itself where rows have one query. Prompts, and rows that verify drafts,
have several: their pages are widened by PyTorch, and the kernel attends to the result.

Shapes: T tokens, R rows of a piece, Q queries of each, K key and value heads, D head size, B pages
of the cache, P pages of a row, S tokens of a page, L = P * S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import AttentionSpec, PageFormat, StepBatch
from headstock.ops.int8_pages import SCALE_BYTES, to_int8
from headstock_ascend.attention import PagedAttention, Piece
from headstock_ascend.device import AscendDevice
from headstock_ascend.pages import NO_MASK, PAGE_SIZES, RIGHT_DOWN_CAUSAL, store

TAG = "ascend-pages-int8"
"""One layer's buffer is all pages' keys, their values, the keys' scales, the values' scales. Of a
page, scales are [kv head, token], as the kernel reads them."""
PER_TOKEN_AND_HEAD = 5
"""The kernel's mode of scales in pages of their own."""


class Int8Attention(PagedAttention):
    """Attention of one spec, pages in int8."""

    def __init__(self, spec: AttentionSpec, device: AscendDevice) -> None:
        super().__init__(spec, device)
        features, scales = spec.num_kv_heads * spec.head_dim, spec.num_kv_heads * SCALE_BYTES
        parts = (features, features, scales, scales)
        self.page_format = PageFormat(tag=TAG, page_sizes=PAGE_SIZES, dtype=torch.int8, parts=parts)
        self._heads_K1 = torch.arange(spec.num_kv_heads, device=device.torch_device).unsqueeze(1)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, 2 * K * (D + bytes of a scale)]"""
        return (num_pages, self.spec.page_size, sum(self.page_format.parts))

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values, rounded, and their scales at the batch's write slots."""
        keys_BSC, values_BSC, *scales = self._parts(kv)
        heads = (self.spec.num_kv_heads, self.spec.head_dim)
        places = self._scale_places(batch.write_slots_T[: k_TKD.shape[0]]).flatten()
        (k8_TKD, k_scale_TK1), (v8_TKD, v_scale_TK1) = to_int8(k_TKD), to_int8(v_TKD)
        for scale_BKS, scale_TK1 in zip(scales, (k_scale_TK1, v_scale_TK1), strict=True):
            scale_BKS.view(-1).index_copy_(0, places, scale_TK1.squeeze(-1).t().flatten())
        keys_BSKD, values_BSKD = (x.unflatten(2, heads) for x in (keys_BSC, values_BSC))
        store(k8_TKD, v8_TKD, keys_BSKD, values_BSKD, batch)

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots. float32. [S, K, D] each."""
        keys_BSC, values_BSC, key_scales, value_scales = self._parts(kv)
        places_KS = self._scale_places(slots_S)
        k_SKD, v_SKD = (
            whole.flatten(0, 1)[slots_S].unflatten(1, (self.spec.num_kv_heads, -1)).float()
            * scale_BKS.view(-1)[places_KS].t().unsqueeze(-1)
            for whole, scale_BKS in ((keys_BSC, key_scales), (values_BSC, value_scales))
        )
        return k_SKD, v_SKD

    def _attend(self, q_THD: Tensor, kv: Tensor, batch: StepBatch, piece: Piece) -> Tensor:
        q_RQHD = q_THD[piece.tokens].unflatten(0, (len(piece.lengths), -1)).contiguous()
        attend = self._attend_to_pages if q_RQHD.shape[1] == 1 else self._attend_to_widened
        return attend(q_RQHD, kv, batch.page_table_RP[piece.rows], piece).flatten(0, 1)

    def _attend_to_pages(
        self, q_R1HD: Tensor, kv: Tensor, table_RP: Tensor, piece: Piece
    ) -> Tensor:
        """Attend with one query a row, which sees all that its length says."""
        spec, (keys_BSC, values_BSC, key_scales, value_scales) = self.spec, self._parts(kv)
        out_R1HD, _ = torch.ops.npu.npu_fused_infer_attention_score(
            q_R1HD,
            keys_BSC,
            values_BSC,
            actual_seq_lengths_kv=piece.lengths,
            key_antiquant_scale=key_scales,
            value_antiquant_scale=value_scales,
            block_table=table_RP.contiguous(),
            num_heads=spec.num_heads,
            num_key_value_heads=spec.num_kv_heads,
            scale=spec.scale,
            input_layout="BSND",
            sparse_mode=NO_MASK,
            block_size=spec.page_size,
            key_antiquant_mode=PER_TOKEN_AND_HEAD,
            value_antiquant_mode=PER_TOKEN_AND_HEAD,
        )
        return out_R1HD

    def _attend_to_widened(
        self, q_RQHD: Tensor, kv: Tensor, table_RP: Tensor, piece: Piece
    ) -> Tensor:
        """Attend with several queries a row, to its keys and values in the dtype of queries."""
        spec = self.spec
        num_pages = -(-max(piece.lengths) // spec.page_size)
        pages_RP = table_RP[:, :num_pages].long()
        keys_BSC, values_BSC, key_scales, value_scales = self._parts(kv)
        out_RQHD, _ = torch.ops.npu.npu_fused_infer_attention_score(
            q_RQHD,
            self._widened(keys_BSC, key_scales, pages_RP),
            self._widened(values_BSC, value_scales, pages_RP),
            atten_mask=self._hidden,
            actual_seq_lengths_kv=piece.lengths,
            num_heads=spec.num_heads,
            num_key_value_heads=spec.num_kv_heads,
            scale=spec.scale,
            input_layout="BSND",
            sparse_mode=NO_MASK if self._hidden is None else RIGHT_DOWN_CAUSAL,
        )
        return out_RQHD

    def _widened(self, whole_BSC: Tensor, scale_BKS: Tensor, pages_RP: Tensor) -> Tensor:
        """Return the keys or values of some pages. [R, L, K, D]"""
        spec = self.spec
        whole_RPSKD = whole_BSC[pages_RP].unflatten(3, (spec.num_kv_heads, spec.head_dim))
        scale_RPSK1 = scale_BKS[pages_RP].transpose(2, 3).unsqueeze(-1)
        return (whole_RPSKD * scale_RPSK1).to(spec.dtype).flatten(1, 2)

    def _parts(self, kv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return keys and values [B, S, K * D], and their scales [B, K, S]."""
        keys_BSC, values_BSC, *rest = self.page_format.tensors_of(kv)
        shape = (kv.shape[0], self.spec.num_kv_heads, self.spec.page_size)
        key_scales, value_scales = (x.view(-1).view(torch.float32).view(shape) for x in rest)
        return keys_BSC, values_BSC, key_scales, value_scales

    def _scale_places(self, slots_S: Tensor) -> Tensor:
        """Return where the scales of token slots lie in their part, in float32s. [K, S]"""
        page_size = self.spec.page_size
        pages_S = slots_S.div(page_size, rounding_mode="floor")
        # Of each page before it all heads have scales, and so have the heads before in its own.
        before_KS = pages_S * self.spec.num_kv_heads + self._heads_K1
        return before_KS * page_size + slots_S % page_size


def build_int8(spec: AttentionSpec, device: AscendDevice) -> Int8Attention:
    """Build the provider."""
    return Int8Attention(spec, device)
