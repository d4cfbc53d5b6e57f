"""The provider of latent attention: buffers, the plan of a step, and the launches of a layer.

Shapes: as in :mod:`headstock.ops.latent`.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.latent import LatentSpec
from headstock_triton.attention.decode import LOG2_E
from headstock_triton.latent.attend import (
    attend_latent_blocks,
    attend_latent_items,
    merge_latent_items,
    plan_latents,
)
from headstock_triton.latent.chosen import attend_chosen_latents, merge_chosen_latents
from headstock_triton.latent.scan import TAG
from headstock_triton.latent.write import prepare_latents, write_latents
from headstock_triton.target import HOPPER, Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.device import OpDevice
    from headstock.ops.latent import LatentProvider

PAGE_SIZES = (64, 128, 32, 16)
MERGED_TOGETHER = 8
"""Partials of a row that the merge adds up at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentTuning:
    """Block shapes: choices to measure, not contracts.

    Attributes:
        most_heads: Heads of a program, at most: each reads the latents anew.
        block_rows: Rows (queries x heads) of a program for rows with several queries.
        item: (tokens of a tile, warps, stages) of rows with one query.
        block: Likewise of rows with several.
        programs_per_sm: Programs for rows of one query to aim at, a multiprocessor.
        min_chunk: Least tokens of one.
    """

    most_heads: int = 16
    block_rows: int = 16
    item: tuple[int, int, int] = (32, 4, 2)
    block: tuple[int, int, int] = (32, 4, 2)
    programs_per_sm: int = 2
    min_chunk: int = 128


FLOAT32 = LatentTuning(item=(16, 4, 1), block=(16, 4, 1))
"""Tensor cores do not multiply float32 exactly, and large blocks take minutes to compile."""
SMALL = LatentTuning()
"""Fits multiprocessors with 100 KiB of shared memory."""
FEW_HEADS = LatentTuning(block_rows=64, block=(32, 8, 2), programs_per_sm=3)
SOME_HEADS = replace(FEW_HEADS, most_heads=32, item=(32, 4, 2), programs_per_sm=2)
MANY_HEADS = replace(FEW_HEADS, most_heads=64, item=(32, 8, 2), programs_per_sm=1)
"""A block of 64 heads takes a multiprocessor and its registers."""
FEW_ON_HOPPER = replace(FEW_HEADS, block=(32, 8, 3))
SOME_ON_HOPPER = replace(FEW_ON_HOPPER, most_heads=32, item=(32, 4, 3), programs_per_sm=2)
MANY_ON_HOPPER = replace(FEW_ON_HOPPER, most_heads=64, item=(64, 8, 2), programs_per_sm=1)
"""Of two tiles, the next is asked for once the last is multiplied: where few programs share a
multiprocessor, three are under way, or tiles are larger, and it has the memory. Measured on an
H200 (``benchmarks/cuda_kernels.py latents``)."""


def tuning_of(spec: LatentSpec, target: Target) -> LatentTuning:
    """Return the block shapes for ``spec`` on ``target``."""
    if spec.dtype == torch.float32:
        return FLOAT32
    if not target.has_large_blocks:
        return SMALL
    is_hopper = target.arch == HOPPER
    if spec.num_heads <= FEW_HEADS.most_heads:
        return FEW_ON_HOPPER if is_hopper else FEW_HEADS
    if spec.num_heads < MANY_HEADS.most_heads:
        return SOME_ON_HOPPER if is_hopper else SOME_HEADS
    return MANY_ON_HOPPER if is_hopper else MANY_HEADS


class PagedLatentAttention:
    """Latent attention over pages: queries absorb the keys' matrices, whatever the row.

    Args:
        spec: Of the layers.
        device: Where they run.
        tuning: Block shapes; None: those for the spec.
    """

    def __init__(
        self, spec: LatentSpec, device: OpDevice, tuning: LatentTuning | None = None
    ) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=TAG, page_sizes=PAGE_SIZES, dtype=spec.kv_dtype)
        self._target = Target.of(device)
        self.tuning = tuning or tuning_of(spec, self._target)
        self._scale = spec.scale * LOG2_E
        self._heads = min(self.tuning.most_heads, max(16, next_power_of_2(spec.num_heads)))
        self._head_blocks = cdiv(spec.num_heads, self._heads)
        self._queries = max(1, self.tuning.block_rows // self._heads)
        spread = self._target.num_sms * self.tuning.programs_per_sm
        self._spread = max(1, spread // self._head_blocks)
        self._items = self._blocks = 0
        self._leader: int | None = None
        self._make_buffers(device.torch_device)

    def _make_buffers(self, where: torch.device) -> None:
        spec = self.spec
        shape = (spec.max_rows + self._spread, spec.num_heads)
        self._partial_lse = torch.zeros(shape, dtype=torch.float32, device=where)
        shape = (*shape, spec.latent_size)
        self._partial_o = torch.zeros(shape, dtype=torch.float32, device=where)
        self._first_items = torch.zeros(spec.max_rows, dtype=torch.int32, device=where)
        self._first_blocks = torch.zeros_like(self._first_items)
        self._totals = torch.zeros(3, dtype=torch.int32, device=where)

    @property
    def graph_key(self) -> tuple[int, ...]:
        """The grids of the last plan."""
        return (self._items, self._blocks)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, page_size, X]."""
        return (num_pages, self.spec.page_size, self.spec.cached_size)

    def plan(self, batch: StepBatch) -> None:
        """Choose the grids from host bounds; what is where follows on the device."""
        rows = batch.num_rows
        assert rows <= self.spec.max_rows, f"{rows} rows, buffers for {self.spec.max_rows}"
        self._leader = None
        self._items = rows + self._spread
        if rows < 16:
            self._items = min(self._items, rows * cdiv(batch.max_kv, self.tuning.min_chunk))
        self._blocks = 0
        if batch.max_query > 1:
            self._blocks = batch.num_tokens // self._queries + min(rows, batch.num_tokens // 2)

    def write(self, latent_TC: Tensor, key_TE: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store latents, normalised, and keys, rotated, of the step's tokens."""
        spec = self.spec
        write_latents[(latent_TC.shape[0],)](
            latent_TC if latent_TC.stride(1) == 1 else latent_TC.contiguous(),
            key_TE if key_TE.stride(1) == 1 else key_TE.contiguous(),
            kv,
            batch.write_slots_T,
            latent_TC.stride(0),
            key_TE.stride(0),
            C=spec.latent_size,
            E=spec.rotary_size,
            BLOCK_C=next_power_of_2(spec.latent_size),
            BLOCK_E=next_power_of_2(spec.rotary_size),
            **self._target.launch(4),
        )

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots. [S, X]"""
        return kv.view(-1, kv.shape[-1]).index_select(0, slots_S)

    def run(
        self,
        q_THQ: Tensor,
        up_HUC: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend. [T, H, V]

        The first layer that runs after a plan makes the lists, each time that it runs: lengths are
        known on the device alone. A graph captured after the plan makes them at every replay.
        """
        assert (chosen_Tk is not None) == (self.spec.num_chosen > 0), (
            "tokens are chosen as specified"
        )
        if self._leader is None:
            self._leader = kv.data_ptr()
        if self._leader == kv.data_ptr() and chosen_Tk is None:
            self._make_lists(batch)
        spec = self.spec
        num_tokens, key_size = q_THQ.shape[0], spec.key_size
        heads = (num_tokens, spec.num_heads)
        absorbed_THC = q_THQ.new_empty((*heads, spec.latent_size))
        q_HTN = q_THQ[..., :key_size].transpose(0, 1)
        torch.bmm(q_HTN, up_HUC[:, :key_size], out=absorbed_THC.transpose(0, 1))
        sums_THC = torch.empty_like(absorbed_THC)
        if chosen_Tk is not None:
            self._attend_chosen(absorbed_THC, q_THQ, kv, batch, chosen_Tk, sums_THC)
        else:
            if self._blocks:
                self._attend_blocks(absorbed_THC, q_THQ, kv, batch, sums_THC)
            self._attend_items(absorbed_THC, q_THQ, kv, batch, sums_THC)
        out_THV = q_THQ.new_empty((*heads, spec.value_size))
        up_HCV = up_HUC[:, key_size:].transpose(1, 2)
        torch.bmm(sums_THC.transpose(0, 1), up_HCV, out=out_THV.transpose(0, 1))
        return out_THV

    def _make_lists(self, batch: StepBatch) -> None:
        plan_latents[(1,)](
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            self._first_items,
            self._first_blocks,
            self._totals,
            batch.num_rows,
            self._spread,
            MIN_CHUNK=self.tuning.min_chunk,
            QUERIES=self._queries,
            ROWS=max(16, next_power_of_2(batch.num_rows)),
            **self._target.launch(4),
        )

    def _attend_items(
        self, absorbed: Tensor, q: Tensor, kv: Tensor, batch: StepBatch, out: Tensor
    ) -> None:
        block_n, warps, stages = self.tuning.item
        attend_latent_items[(self._head_blocks, self._items)](
            absorbed,
            q,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            self._first_items,
            self._totals,
            self._partial_o,
            self._partial_lse,
            out,
            self._scale,
            batch.page_table_RP.stride(0),
            batch.num_rows,
            BLOCK_M=self._heads,
            BLOCK_N=block_n,
            STAGES=self._target.stages(stages),
            **self._shape(batch),
            **self._target.launch(warps),
        )
        merge_latent_items[(batch.num_rows, self.spec.num_heads)](
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            self._first_items,
            self._totals,
            self._partial_o,
            self._partial_lse,
            out,
            HEADS=self.spec.num_heads,
            C=self.spec.latent_size,
            BLOCK_C=next_power_of_2(self.spec.latent_size),
            BLOCK_S=MERGED_TOGETHER,
            **self._target.launch(4),
        )

    def _attend_blocks(
        self, absorbed: Tensor, q: Tensor, kv: Tensor, batch: StepBatch, out: Tensor
    ) -> None:
        block_n, warps, stages = self.tuning.block
        attend_latent_blocks[(self._head_blocks, self._blocks)](
            absorbed,
            q,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            self._first_blocks,
            self._totals,
            out,
            self._scale,
            batch.page_table_RP.stride(0),
            batch.num_rows,
            BLOCK_H=self._heads,
            BLOCK_M=self._heads * self._queries,
            BLOCK_N=block_n,
            STAGES=self._target.stages(stages),
            **self._shape(batch),
            **self._target.launch(warps),
        )

    def _attend_chosen(
        self,
        absorbed: Tensor,
        q: Tensor,
        kv: Tensor,
        batch: StepBatch,
        chosen_Tk: Tensor,
        out: Tensor,
    ) -> None:
        num_tokens, most = chosen_Tk.shape
        items = min(self._spread // num_tokens, cdiv(most, self.tuning.min_chunk))
        items = max(1, items)  # as many partials as there is room for, or none
        block_n, warps, stages = self.tuning.item
        attend_chosen_latents[(num_tokens * items, self._head_blocks)](
            absorbed,
            q,
            kv,
            chosen_Tk,
            batch.page_table_RP,
            batch.row_of_token_T,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            self._partial_o,
            self._partial_lse,
            out,
            self._scale,
            batch.page_table_RP.stride(0),
            most,
            items,
            BLOCK_M=self._heads,
            BLOCK_N=block_n,
            STAGES=self._target.stages(stages),
            **self._sizes,
            **self._target.launch(warps),
        )
        if items == 1:
            return
        merge_chosen_latents[(num_tokens, self.spec.num_heads)](
            batch.counts,
            self._partial_o,
            self._partial_lse,
            out,
            items,
            HEADS=self.spec.num_heads,
            C=self.spec.latent_size,
            BLOCK_C=next_power_of_2(self.spec.latent_size),
            BLOCK_S=MERGED_TOGETHER,
            **self._target.launch(4),
        )

    def _shape(self, batch: StepBatch) -> dict[str, Any]:
        return self._sizes | {"ROWS": max(16, next_power_of_2(batch.num_rows))}

    @property
    def _sizes(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "HEADS": spec.num_heads,
            "PAGE": spec.page_size,
            "KEY": spec.key_size,
            "C": spec.latent_size,
            "E": spec.rotary_size,
            "BLOCK_C": max(16, next_power_of_2(spec.latent_size)),
            "BLOCK_E": max(16, next_power_of_2(spec.rotary_size)),
        }


class LatentRotations:
    """The op rotate_and_write_latent on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def rotate_and_write_latent(
        self,
        q_THQ: Tensor,
        kv_TX: Tensor,
        cos_sin_LE: Tensor | None,
        norm_C: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        provider: LatentProvider,
        eps: float,
        is_interleaved: bool,
    ) -> Tensor:
        """See :func:`headstock.ops.latent.rotate_and_write_latent`; queries turn in place."""
        q_THQ = q_THQ.contiguous()
        kv_TX = kv_TX if kv_TX.stride(1) == 1 else kv_TX.contiguous()
        num_tokens, num_heads, query_size = q_THQ.shape
        latent_size = norm_C.shape[0]
        rotary_size = kv_TX.shape[1] - latent_size
        heads = min(16, next_power_of_2(num_heads))
        parts = 1 if cos_sin_LE is None else 1 + cdiv(num_heads, heads)
        prepare_latents[(num_tokens, parts)](
            q_THQ,
            kv_TX,
            kv_TX if cos_sin_LE is None else cos_sin_LE,
            norm_C,
            batch.positions_T,
            batch.write_slots_T,
            kv,
            kv_TX.stride(0),
            eps,
            HEADS=num_heads,
            KEY=query_size - rotary_size,
            C=latent_size,
            E=rotary_size,
            IS_ROTATED=cos_sin_LE is not None,
            IS_INTERLEAVED=is_interleaved,
            BLOCK_H=heads,
            BLOCK_C=next_power_of_2(latent_size),
            BLOCK_F=max(1, next_power_of_2(rotary_size // 2)),
            **self._target.launch(4),
        )
        return q_THQ
