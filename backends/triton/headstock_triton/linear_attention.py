"""The provider of linear attention, and the gates on attention's output.

Shapes: as in :mod:`headstock.ops.linear_attention`.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.attention import KVLayout, StepBatch
from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec
from headstock_triton.delta import (
    CHUNK,
    chunk_kernel,
    conv_kernel,
    keep_inputs_kernel,
    step_kernel,
)
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

STATE_TAG = "state-inputs-vkd"
"""As the reference has it: inputs of the convolution, then the matrices."""
CONV_BLOCK = 1024
"""Features that a program convolves."""
STEP_COLUMNS, CHUNK_COLUMNS = 32, 32
"""Columns of a matrix that a program has in registers."""


class TritonLinearAttention:
    """The gated delta rule after a causal convolution, for one spec."""

    def __init__(self, spec: LinearAttentionSpec, device: OpDevice) -> None:
        self.spec = spec
        self.layout = KVLayout(tag=STATE_TAG, page_sizes=(1,), dtype=torch.float32)
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
        a_TV: Tensor,
        weights: DeltaWeights,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Convolve, update the rows' states and read them. [T, V, Dv]"""
        spec = self.spec
        assert qkv_TC.stride(1) == b_TV.stride(1) == a_TV.stride(1) == 1, "columns lie apart"
        mixed_TC = self._convolve(qkv_TC, weights, kv, batch)
        shape = (qkv_TC.shape[0], spec.num_value_heads, spec.value_size)
        y_TVd = qkv_TC.new_empty(shape)
        args = (
            mixed_TC,
            b_TV,
            a_TV,
            weights.decay_V,
            weights.bias_V,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            y_TVd,
            b_TV.stride(0),
            a_TV.stride(0),
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
            "BLOCK_K": max(16, next_power_of_2(spec.key_size)),
        }
        if batch.max_query > 1:
            columns = min(CHUNK_COLUMNS, max(16, next_power_of_2(spec.value_size)))
            grid = (cdiv(spec.value_size, columns), spec.num_value_heads, batch.num_rows)
            precision = "ieee" if spec.dtype == torch.float32 else "tf32"
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

    def _convolve(
        self, qkv_TC: Tensor, weights: DeltaWeights, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        num_tokens, size = qkv_TC.shape
        mixed_TC = torch.empty((num_tokens, size), dtype=qkv_TC.dtype, device=qkv_TC.device)
        width, blocks = self.spec.kernel_size, cdiv(size, CONV_BLOCK)
        strides = (qkv_TC.stride(0), batch.page_table_RP.stride(0), kv.stride(0))
        conv_kernel[(num_tokens, blocks)](
            qkv_TC,
            weights.conv_CW,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.row_of_token_T,
            mixed_TC,
            *strides,
            size,
            W=width,
            BLOCK=CONV_BLOCK,
            **self._target.launch(4),
        )
        keep_inputs_kernel[(batch.num_rows, blocks)](
            qkv_TC,
            kv,
            batch.page_table_RP,
            batch.query_starts_R1,
            batch.kv_lengths_R,
            batch.counts,
            *strides,
            size,
            W=width,
            BLOCK_W=next_power_of_2(width - 1),
            BLOCK=CONV_BLOCK,
            **self._target.launch(4),
        )
        return mixed_TC


@triton.jit
def gated_norm_kernel(
    x,
    gate,
    weight,
    out,
    gate_stride,
    eps,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Normalise and gate head ``program_id(1)`` of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, BLOCK)
    inside = d < D
    at = (token * HEADS + head) * D + d
    x32 = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x32 * x32, axis=0) / D + eps)
    normal = (x32 * inverse).to(out.dtype.element_ty) * tl.load(weight + d, mask=inside, other=0.0)
    g = tl.load(gate + token * gate_stride + head * D + d, mask=inside, other=0.0).to(tl.float32)
    y = normal.to(tl.float32) * (g / (1.0 + tl.exp(-g)))
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gate_kernel(x, gate, out, x_stride, gate_stride, C, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Gate some features of token ``program_id(0)``."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < C
    x32 = tl.load(x + token * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + token * gate_stride + c, mask=inside, other=0.0).to(tl.float32)
    y = x32 / (1.0 + tl.exp(-g))
    tl.store(out + token * C + c, y.to(out.dtype.element_ty), mask=inside)


class Gates:
    """The gates on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def gated_norm(
        self, x_THD: Tensor, gate_THD: Tensor, weight_D: Tensor, *, eps: float
    ) -> Tensor:
        """See :func:`headstock.ops.gates.gated_norm`."""
        x_THD = x_THD.contiguous()
        num_tokens, heads, size = x_THD.shape
        if gate_THD.stride()[1:] != (size, 1):
            gate_THD = gate_THD.contiguous()
        out_THD = torch.empty_like(x_THD)
        gated_norm_kernel[(num_tokens, heads)](
            x_THD,
            gate_THD,
            weight_D,
            out_THD,
            gate_THD.stride(0),
            eps,
            HEADS=heads,
            D=size,
            BLOCK=next_power_of_2(size),
            **self._target.launch(1),
        )
        return out_THD

    def gate_features(self, x_TC: Tensor, gate_TC: Tensor) -> Tensor:
        """See :func:`headstock.ops.gates.gate_features`."""
        x_TC = x_TC if x_TC.stride(1) == 1 else x_TC.contiguous()
        gate_TC = gate_TC if gate_TC.stride(1) == 1 else gate_TC.contiguous()
        num_tokens, size = x_TC.shape
        out_TC = torch.empty((num_tokens, size), dtype=x_TC.dtype, device=x_TC.device)
        gate_kernel[(num_tokens, cdiv(size, CONV_BLOCK))](
            x_TC,
            gate_TC,
            out_TC,
            x_TC.stride(0),
            gate_TC.stride(0),
            size,
            BLOCK=CONV_BLOCK,
            **self._target.launch(4),
        )
        return out_TC
