"""A whole step in one call of ``npu_fused_infer_attention_score_v2``: windows, sinks and latents.

The kernel takes the packed tokens as they are (its layout TND), where each row's queries end and
how many tokens each row has. It takes few sizes that way: heads of 64 or 128, latents of 512 with
rotated keys of 64.

Shapes: T tokens, R rows, H query heads, K key and value heads, D head size, C features of a
latent, E features of the rotated key, N + V features that are made of a latent, B pages of the
cache, S tokens of a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from headstock.ops.attention import AttentionSpec, PageFormat, StepBatch
from headstock.ops.latent import LatentSpec
from headstock_ascend.device import AscendDevice, Updates
from headstock_ascend.pages import (
    BAND,
    NO_MASK,
    PAGE_SIZES,
    RIGHT_DOWN_CAUSAL,
    HeadPages,
    causal_mask,
    store,
)

LATENT_TAG = "ascend-pages-latent"
"""One layer's buffer is all pages' latents, then all pages' rotated keys."""


@dataclass(slots=True)
class Rows:
    """A step's rows as the kernel takes them: plain numbers.

    Attributes:
        ends: Where each row's queries end in the step.
        lengths: Tokens of each row.
    """

    ends: list[int] = field(default_factory=list[int])
    lengths: list[int] = field(default_factory=list[int])

    def enter(self, host_rows: Sequence[tuple[int, int]]) -> None:
        """Take a step's rows."""
        assert host_rows, "the kernel takes lengths from the host, and the batch has none"
        self.ends = list(accumulate(queries for queries, _ in host_rows))
        self.lengths = [length for _, length in host_rows]

    @property
    def are_single(self) -> bool:
        """Whether each row has one query, which sees all that its length says."""
        return self.ends[-1] == len(self.ends)

    def updates(self) -> Updates:
        """Return what changes from step to step in a captured call."""
        return {"actual_seq_kvlen": self.lengths}


class RaggedAttention(HeadPages):
    """Causal attention of one spec, with windows and sinks."""

    def __init__(self, spec: AttentionSpec, device: AscendDevice) -> None:
        super().__init__(spec)
        self._device = device
        self._rows = Rows()
        self._hidden = causal_mask(device.torch_device)
        self._window = {"sparse_mode": RIGHT_DOWN_CAUSAL}
        if spec.window is not None:
            # The query itself is none of the tokens before it.
            before = min(spec.window, spec.max_length) - 1
            self._window = {"sparse_mode": BAND, "pre_tokens": before, "next_tokens": 0}

    def plan(self, batch: StepBatch) -> None:
        """Take the rows' lengths. A captured call has baked in how wide the page table is."""
        self._rows.enter(batch.host_rows)
        self.graph_key = (batch.page_table_RP.shape[1],)

    def run(
        self, q_THD: Tensor, kv: Tensor, batch: StepBatch, *, sinks_H: Tensor | None = None
    ) -> Tensor:
        """Attend. [T, H, D]"""
        spec = self.spec
        keys_BSC, values_BSC = kv.flatten(3).unbind(0)
        self._device.note_updates(self._rows.updates)
        out_THD, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
            q_THD.contiguous(),
            keys_BSC,
            values_BSC,
            atten_mask=self._hidden,
            actual_seq_qlen=self._rows.ends,
            actual_seq_kvlen=self._rows.lengths,
            block_table=batch.page_table_RP.contiguous(),
            learnable_sink=None if sinks_H is None else sinks_H.to(spec.dtype),
            num_query_heads=spec.num_heads,
            num_key_value_heads=spec.num_kv_heads,
            softmax_scale=spec.scale,
            input_layout="TND",
            block_size=spec.page_size,
            **self._window,
        )
        return out_THD


class LatentAttention:
    """Causal attention over latents; queries absorb the keys' matrices."""

    def __init__(self, spec: LatentSpec, device: AscendDevice) -> None:
        self.spec = spec
        parts = (spec.latent_size, spec.rotary_size)
        self.page_format = PageFormat(
            tag=LATENT_TAG, page_sizes=PAGE_SIZES, dtype=spec.kv_dtype, parts=parts
        )
        self.graph_key: tuple[int, ...] = ()
        self._device = device
        self._rows = Rows()
        self._hidden = causal_mask(device.torch_device)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, C + E], of which the latents come first, all of them."""
        return (num_pages, self.spec.page_size, self.spec.cached_size)

    def plan(self, batch: StepBatch) -> None:
        """Take the rows' lengths. A captured call has baked in how wide the page table is."""
        self._rows.enter(batch.host_rows)
        self.graph_key = (batch.page_table_RP.shape[1],)

    def write(self, latent_TC: Tensor, key_TE: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store latents and rotated keys at the batch's write slots."""
        latents, keys = (part.unsqueeze(2) for part in self.page_format.tensors_of(kv))
        store(
            latent_TC.to(kv.dtype).unsqueeze(1),
            key_TE.to(kv.dtype).unsqueeze(1),
            latents,
            keys,
            batch,
        )

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots, side by side. [S, C + E]"""
        parts = (part.flatten(0, 1) for part in self.page_format.tensors_of(kv))
        return torch.cat([part.index_select(0, slots_S) for part in parts], dim=-1)

    def run(self, q_THQ: Tensor, up_HUC: Tensor, kv: Tensor, batch: StepBatch) -> Tensor:
        """Attend. [T, H, V]"""
        spec, key_size = self.spec, self.spec.key_size
        q_HTN = q_THQ[..., :key_size].transpose(0, 1)
        absorbed_THC = torch.bmm(q_HTN, up_HUC[:, :key_size]).transpose(0, 1).contiguous()
        latents_BSC, keys_BSE = self.page_format.tensors_of(kv)
        is_masked = not self._rows.are_single
        self._device.note_updates(self._rows.updates)
        sums_THC, _ = torch.ops.npu.npu_fused_infer_attention_score_v2(
            absorbed_THC,
            latents_BSC,
            latents_BSC,
            query_rope=q_THQ[..., key_size:].contiguous(),
            key_rope=keys_BSE,
            atten_mask=self._hidden if is_masked else None,
            actual_seq_qlen=self._rows.ends,
            actual_seq_kvlen=self._rows.lengths,
            block_table=batch.page_table_RP.contiguous(),
            num_query_heads=spec.num_heads,
            num_key_value_heads=1,
            softmax_scale=spec.scale,
            input_layout="TND",
            sparse_mode=RIGHT_DOWN_CAUSAL if is_masked else NO_MASK,
            block_size=spec.page_size,
        )
        out_HTV = torch.bmm(sums_THC.transpose(0, 1), up_HUC[:, key_size:].transpose(1, 2))
        return out_HTV.transpose(0, 1).contiguous()


def build_ragged(spec: AttentionSpec, device: AscendDevice) -> RaggedAttention:
    """Build the provider."""
    return RaggedAttention(spec, device)


def build_latent(spec: LatentSpec, device: AscendDevice) -> LatentAttention:
    """Build the provider."""
    return LatentAttention(spec, device)
