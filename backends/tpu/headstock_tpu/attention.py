"""Attention over pages on a TPU: a Pallas kernel on the chip, a pure form everywhere else.

Both read the same pages. A page keeps, head by head, the features of its tokens side by side, so
that one head's part of a page is a tile of the matrix unit.

Shapes: T tokens, R rows, L tokens of a row that are looked at, P pages of a row, H query heads, K
key and value heads, G = H / K query heads of a kv head, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.attention import AttentionSpec, PageFormat, StepBatch
from headstock.ops.device import OpDevice

TAG = "tpu-kv-pages-htd"
"""One layer's buffer is [page, keys or values, kv head, token, feature]."""

PAGE_SIZES = (16, 32, 64, 128)

GATHERED_AT_ONCE = 1 << 26
"""Most elements of keys that the pure form gathers at a time."""


class PagedAttention:
    """The pure form: gathers each token's keys and values, masks, attends.

    What is past a row's length may be anything, and masking does not help, since 0 * nan is nan:
    the row's first token stands there instead. Likewise for what is before a window.
    """

    def __init__(self, spec: AttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=TAG, page_sizes=PAGE_SIZES, dtype=spec.kv_dtype)
        self.graph_key: tuple[int, ...] = ()

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, 2, K, page_size, D]"""
        spec = self.spec
        return (num_pages, 2, spec.num_kv_heads, spec.page_size, spec.head_dim)

    def plan(self, batch: StepBatch) -> None:
        """Do nothing: a program reads the batch itself."""

    def write(self, k_TKD: Tensor, v_TKD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store keys and values at the batch's write slots.

        In one call on the pages themselves: through a view torch-xla would copy them all.
        """
        slots_T11 = batch.write_slots_T[: k_TKD.shape[0], None, None]
        page_size, device = self.spec.page_size, slots_T11.device
        planes_1C1 = torch.arange(2, device=device)[None, :, None]
        heads_11K = torch.arange(self.spec.num_kv_heads, device=device)[None, None]
        places = (
            slots_T11.div(page_size, rounding_mode="floor"),
            planes_1C1,
            heads_11K,
            slots_T11.remainder(page_size),
        )
        kv.index_put_(places, torch.stack((k_TKD, v_TKD), dim=1).to(kv.dtype))

    def read(self, kv: Tensor, slots_S: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values at token slots. [S, K, D] each."""
        rows_SK, flat = self._rows(slots_S), kv.view(-1, kv.shape[-1])
        return flat[rows_SK], flat[rows_SK + self._rows_of_keys]

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        """Attend. [T, H, D]"""
        spec = self.spec
        lengths_T = batch.positions_T.to(torch.int32) + 1
        if batch.max_query == 1:
            lengths_T = batch.kv_lengths_R
        num_tokens = q_THD.shape[0]
        seen = batch.max_kv if spec.window is None else min(batch.max_kv, spec.window)
        at_once = max(1, GATHERED_AT_ONCE // (seen * spec.num_kv_heads * spec.head_dim))
        outs: list[Tensor] = []
        for begin in range(0, num_tokens, at_once):
            some = slice(begin, min(begin + at_once, num_tokens))
            table_TP = batch.page_table_RP
            if batch.max_query > 1 or num_tokens != batch.num_rows:
                table_TP = table_TP.index_select(0, batch.row_of_token_T[some])
            else:
                table_TP = table_TP[some]
            outs.append(self._attend(q_THD[some], kv, table_TP, lengths_T[some], seen, sinks_H))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    @property
    def _rows_of_keys(self) -> int:
        return self.spec.num_kv_heads * self.spec.page_size

    def _rows(self, slots_S: Tensor) -> Tensor:
        """Return where the keys of token slots lie, head by head, in rows of D features. [S, K]"""
        page_size, heads = self.spec.page_size, self.spec.num_kv_heads
        pages_S = slots_S.div(page_size, rounding_mode="floor")
        first_S = pages_S * (2 * self._rows_of_keys) + slots_S.remainder(page_size)
        heads_K = torch.arange(heads, device=slots_S.device, dtype=slots_S.dtype)
        return first_S[:, None] + heads_K * page_size

    def _attend(
        self,
        q_THD: Tensor,
        kv: Tensor,
        table_TP: Tensor,
        lengths_T: Tensor,
        seen: int,
        sinks_H: Tensor | None,
    ) -> Tensor:
        """Attend for some tokens, the last ``seen`` of whose own are looked at. [T, H, D]"""
        spec, lengths_T1 = self.spec, lengths_T[:, None]
        places_L = torch.arange(seen, device=q_THD.device, dtype=torch.int32)
        first_T1 = torch.zeros_like(lengths_T1)
        if spec.window is not None:
            first_T1 = (lengths_T1 - seen).clamp(min=0)
        tokens_TL = first_T1 + places_L
        is_past_TL = tokens_TL >= lengths_T1
        tokens_TL = torch.where(is_past_TL, first_T1, tokens_TL).long()
        pages_TL = table_TP.gather(1, tokens_TL // spec.page_size).long()
        rows_TLK = self._rows(
            pages_TL.flatten() * spec.page_size + tokens_TL.flatten() % spec.page_size
        )
        flat = kv.view(-1, spec.head_dim)
        shape = (*tokens_TL.shape, spec.num_kv_heads, spec.head_dim)
        k_TLKD, v_TLKD = (
            flat.index_select(0, (rows_TLK + skipped).flatten()).view(shape).to(torch.float32)
            for skipped in (0, self._rows_of_keys)
        )
        q_TKGD = q_THD.unflatten(1, (spec.num_kv_heads, -1)).to(torch.float32)
        scores_TKGL = torch.einsum("tkgd,tlkd->tkgl", q_TKGD, k_TLKD) * spec.scale
        if spec.soft_cap is not None:
            scores_TKGL = spec.soft_cap * torch.tanh(scores_TKGL / spec.soft_cap)
        scores_TKGL = scores_TKGL.masked_fill(is_past_TL[:, None, None], -torch.inf)
        if sinks_H is not None:
            sinks_KG1 = sinks_H.to(torch.float32).view(spec.num_kv_heads, -1, 1)
            column = sinks_KG1.expand(len(q_THD), -1, -1, 1)
            scores_TKGL = torch.cat((scores_TKGL, column), dim=-1)
        probs_TKGL = scores_TKGL.softmax(dim=-1)[..., :seen]
        out_TKGD = torch.einsum("tkgl,tlkd->tkgd", probs_TKGL, v_TLKD)
        return out_TKGD.flatten(1, 2).to(q_THD.dtype)
