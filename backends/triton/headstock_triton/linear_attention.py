"""The provider of linear attention.

Shapes: as in :mod:`headstock.ops.linear_attention`.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.attention import PageFormat, StepBatch
from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec
from headstock_triton.convolution import convolve
from headstock_triton.delta import CHUNK, chunk_kernel, step_kernel
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

STATE_TAG = "state-inputs-vkd"
"""As the reference has it: inputs of the convolution, then the matrices."""
STEP_COLUMNS, CHUNK_COLUMNS = 32, 32
"""Columns of a matrix that a program has in registers."""


class TritonLinearAttention:
    """The gated delta rule after a causal convolution, for one spec."""

    def __init__(self, spec: LinearAttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.page_format = PageFormat(tag=STATE_TAG, page_sizes=(1,), dtype=torch.float32)
        self.graph_key: tuple[int, ...] = ()
        self._target = Target.of(device)

    def kv_shape(self, num_pages: int) -> tuple[int, ...]:
        """[pages, numbers of a state]."""
        return (num_pages, self.spec.state_size)

    def plan(self, batch: StepBatch) -> None:
        """Note whether the step has rows of several tokens."""
        self.graph_key = (int(batch.max_query > 1),)

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
        sizes = {
            "KEY_HEADS": spec.num_key_heads,
            "VALUE_HEADS": spec.num_value_heads,
            "DK": spec.key_size,
            "DV": spec.value_size,
            "BY_CHANNEL": spec.decays_by_channel,
            "BLOCK_K": max(16, next_power_of_2(spec.key_size)),
        }
        if batch.max_query > 1:
            columns = min(CHUNK_COLUMNS, max(16, next_power_of_2(spec.value_size)))
            grid = (cdiv(spec.value_size, columns), spec.num_value_heads, batch.num_rows)
            precision = self._target.state_precision(spec.dtype)
            chunk_kernel[grid](
                *args,
                BLOCK_M=CHUNK,
                BLOCK_N=columns,
                PRECISION=precision,
                **sizes,
                **self._target.launch(4),
            )
        columns = min(STEP_COLUMNS, max(16, next_power_of_2(spec.value_size)))
        grid = (cdiv(spec.value_size, columns), spec.num_value_heads, batch.num_rows)
        step_kernel[grid](*args, BLOCK_N=columns, **sizes, **self._target.launch(4))
        return y_TVd
