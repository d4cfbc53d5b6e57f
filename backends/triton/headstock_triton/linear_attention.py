"""The provider of linear attention.

Shapes: as in :mod:`headstock.ops.linear_attention`.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec
from headstock_triton import delta_prompts
from headstock_triton.convolution import convolve
from headstock_triton.delta import CHUNK, chunk_kernel, step_kernel
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

STATE_TAG = "state-inputs-vkd"
"""As the reference has it: inputs of the convolution, then the matrices."""
STEP_COLUMNS, CHUNK_COLUMNS = 32, 32
"""Columns of a matrix that a program has in registers."""


SHORT = 16
"""Tokens of a row, at most, for which a chunk of 64 is not worth its work."""
LONG_ROWS = 16
"""Rows of several tokens that programs are launched for, at most: others wait for one of these."""
SMALL_HEAD = 64
"""Features of keys and values under which preparing a chunk needs more warps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTuning:
    """Block shapes of what prompts go through: choices to measure, not contracts.

    Attributes:
        prepare_warps: Warps of the kernel that prepares chunks.
        columns: Columns of a matrix that a program carries through its row.
        warps: Its warps.
        stages: Chunks that it has under way.
    """

    prepare_warps: int = 4
    columns: int = 64
    warps: int = 4
    stages: int = 3


def prompt_tuning_of(spec: LinearAttentionSpec, target: Target) -> PromptTuning | None:
    """Return how chunks of a prompt are computed at once; None: they go one after another.

    Products with states are made in the model's dtype then. float16 has too few digits for that,
    float32 too large blocks. With small heads, four warps have too few registers to prepare a chunk
    of 64 tokens, and what ptxas of CUDA 13.0 made of the spilled code was wrong for sm_90: rows
    after the first 16 differed from run to run, while its unoptimised code was right.
    """
    if spec.decays_by_channel:
        return None
    if target.kind == "cpu":
        return PromptTuning(columns=32)
    if not target.has_large_blocks or spec.dtype != torch.bfloat16:
        return None
    has_small_heads = min(spec.key_size, spec.value_size) < SMALL_HEAD
    return PromptTuning(prepare_warps=8) if has_small_heads else PromptTuning()


class TritonLinearAttention:
    """The gated delta rule after a causal convolution, for one spec.

    Args:
        spec: Of the layers.
        device: Where they run.
        tuning: How prompts are computed; None: as is best for the spec.
    """

    def __init__(
        self, spec: LinearAttentionSpec, device: OpDevice, tuning: PromptTuning | None = None
    ) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=STATE_TAG, page_sizes=(1,), dtype=torch.float32)
        self.graph_key: tuple[int, ...] = ()
        self._target = Target.of(device)
        self._tuning = tuning or prompt_tuning_of(spec, self._target)
        self._leader: int | None = None
        self._sizes: dict[str, Any] = {
            "KEY_HEADS": spec.num_key_heads,
            "VALUE_HEADS": spec.num_value_heads,
            "DK": spec.key_size,
            "DV": spec.value_size,
            "BLOCK_K": max(16, next_power_of_2(spec.key_size)),
        }
        if self._tuning is not None:
            self._make_buffers(device.torch_device)

    def _make_buffers(self, where: torch.device) -> None:
        spec = self.spec
        self._max_rows = max(16, next_power_of_2(spec.max_rows))
        self._first_chunks = torch.zeros(self._max_rows + 1, dtype=torch.int32, device=where)
        self._long_rows = torch.zeros_like(self._first_chunks)
        heads = (spec.max_tokens, spec.num_value_heads)
        self._read_back = torch.zeros((*heads, spec.key_size), dtype=spec.dtype, device=where)
        shape = (*heads, delta_prompts.CHUNK)
        self._weights = torch.zeros(shape, dtype=spec.dtype, device=where)
        self._factors = torch.zeros((*heads, 2), dtype=torch.float32, device=where)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a state]."""
        return (num_pages, self.spec.state_size)

    def plan(self, batch: StepBatch) -> None:
        """Note whether the step has rows of several tokens, and of many."""
        self._leader = None
        self.graph_key = (int(batch.max_query > 1) + int(batch.max_query > SHORT),)

    def read(self, kv: Tensor, pages_R: Tensor) -> tuple[Tensor, Tensor]:
        """Return what pages hold. [R, W - 1, C] and [R, V, Dk, Dv]"""
        spec = self.spec
        found_RX = kv.index_select(0, pages_R.long())
        inputs_RX, matrix_RX = found_RX.tensor_split((spec.inputs_size,), dim=1)
        shape = (spec.num_value_heads, spec.key_size, spec.value_size)
        return inputs_RX.unflatten(1, (-1, spec.conv_size)), matrix_RX.unflatten(1, shape)

    def run(
        self,
        qkv_TC: Tensor,
        b_TV: Tensor,
        a_TG: Tensor,
        weights: DeltaWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, V, Dv]"""
        spec = self.spec
        assert qkv_TC.stride(1) == b_TV.stride(1) == a_TG.stride(1) == 1, "columns lie apart"
        mixed_TC = convolve(qkv_TC, weights.conv_CW, None, kv, batch, self._target)
        shape = (qkv_TC.shape[0], spec.num_value_heads, spec.value_size)
        y_TVd = qkv_TC.new_empty(shape)
        args = (
            mixed_TC,
            b_TV,
            a_TG,
            weights.decay_V,
            weights.bias_G,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            y_TVd,
            b_TV.stride(0),
            a_TG.stride(0),
            batch.page_table_RP.stride(0),
            kv.stride(0),
            spec.inputs_size,
            spec.key_size**-0.5,
        )
        sizes = {"BY_CHANNEL": spec.decays_by_channel, **self._sizes}
        columns = min(STEP_COLUMNS, max(16, next_power_of_2(spec.value_size)))
        grid = (cdiv(spec.value_size, columns), spec.num_value_heads, batch.num_rows)
        step_kernel[grid](*args, BLOCK_N=columns, **sizes, **self._target.launch(4))
        if batch.max_query > SHORT and self._tuning is not None:
            self._prepare_chunks(mixed_TC, b_TV, a_TG, weights, kv, batch)
            self._carry_states(mixed_TC, kv, batch, y_TVd, self._tuning)
        elif batch.max_query > 1:
            columns = min(CHUNK_COLUMNS, max(16, next_power_of_2(spec.value_size)))
            grid = (cdiv(spec.value_size, columns), spec.num_value_heads, batch.num_rows)
            chunk_kernel[grid](
                *args,
                BLOCK_M=CHUNK,
                BLOCK_N=columns,
                PRECISION=self._target.state_precision(spec.dtype),
                **sizes,
                **self._target.launch(4),
            )
        return y_TVd

    def _prepare_chunks(
        self,
        mixed: Tensor,
        b: Tensor,
        a: Tensor,
        weights: DeltaWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> None:
        """Launch it; the first layer that runs after a plan lists the rows' chunks before."""
        assert self._tuning is not None
        spec, tokens = self.spec, mixed.shape[0]
        if self._leader is None:
            self._leader = kv.data_ptr()
        if self._leader == kv.data_ptr():
            delta_prompts.plan_chunks[(1,)](
                batch.query_starts_R1,
                batch.counts,
                self._first_chunks,
                self._long_rows,
                BLOCK_M=delta_prompts.CHUNK,
                ROWS=self._max_rows,
                **self._target.launch(4),
            )
        num_chunks = tokens // delta_prompts.CHUNK + min(batch.num_rows, tokens // 2)
        delta_prompts.prepare_chunks[(num_chunks, spec.num_key_heads)](
            mixed,
            b,
            a,
            weights.decay_V,
            weights.bias_G,
            batch.query_starts_R1,
            self._first_chunks,
            self._read_back,
            self._weights,
            self._factors,
            b.stride(0),
            a.stride(0),
            spec.key_size**-0.5,
            BLOCK_M=delta_prompts.CHUNK,
            BLOCK_V=min(128, max(16, next_power_of_2(spec.value_size))),
            ROWS=self._max_rows,
            PRECISION=self._target.precision(spec.dtype),
            **self._sizes,
            **self._target.launch(self._tuning.prepare_warps),
        )

    def _carry_states(
        self, mixed: Tensor, kv: Tensor, batch: StepBatch, y: Tensor, tuning: PromptTuning
    ) -> None:
        spec = self.spec
        columns = min(tuning.columns, max(16, next_power_of_2(spec.value_size)))
        grid = (
            cdiv(spec.value_size, columns),
            spec.num_value_heads,
            min(batch.num_rows, LONG_ROWS),
        )
        delta_prompts.carry_states[grid](
            mixed,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            self._long_rows,
            self._read_back,
            self._weights,
            self._factors,
            y,
            batch.page_table_RP.stride(0),
            kv.stride(0),
            spec.inputs_size,
            BLOCK_M=delta_prompts.CHUNK,
            BLOCK_N=columns,
            ROWS=self._max_rows,
            STAGES=tuning.stages,
            PRECISION=self._target.precision(spec.dtype),
            **self._sizes,
            **self._target.launch(tuning.warps),
        )
