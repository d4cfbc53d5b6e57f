"""Products in 8-bit floats by a kernel of ours, a scale for every 128 input features.

For devices whose vendor library does not scale group by group. Weights are in the format that the
device multiplies; activations are quantised to it, a row's group at a time.

Shapes: M rows of activations, O output and I input features, G groups.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.linear import CanonicalWeight, LinearSpec
from headstock_triton.fp8 import GROUP, quantize_rows
from headstock_triton.fp8_formats import format_of
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice


class Blocks(NamedTuple):
    """Rows and output features of a program, and its warps."""

    rows: int
    features: int
    num_warps: int


FEW, SOME, MANY = Blocks(16, 32, 2), Blocks(32, 64, 4), Blocks(64, 128, 4)
"""Up to 16 rows, up to 64, and more: the fewer rows, the more programs share the weight."""


@triton.jit(do_not_specialize=["M", "PADDED"])
def multiply_groups_kernel(
    x,
    x_scales,
    weight,
    scales,
    bias,
    out,
    M,
    PADDED,
    NUM_OUT: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_O: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Multiply BLOCK_M rows by BLOCK_O features: program_id(0) counts features, (1) rows."""
    begin(PDL)
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    i = tl.arange(0, GROUP_SIZE)
    inside_M, inside_O = m < M, o < NUM_OUT
    size = NUM_GROUPS * GROUP_SIZE
    x_at = x + m.to(tl.int64)[:, None] * size + i[None, :]
    weight_at = weight + o.to(tl.int64)[None, :] * size + i[:, None]
    total_MO = tl.zeros((BLOCK_M, BLOCK_O), tl.float32)
    for group in tl.range(0, NUM_GROUPS, num_stages=STAGES):
        x_Mi = tl.load(x_at + group * GROUP_SIZE, mask=inside_M[:, None], other=0.0)
        weight_iO = tl.load(weight_at + group * GROUP_SIZE, mask=inside_O[None, :], other=0.0)
        x_scale_M = tl.load(x_scales + group * PADDED + m, mask=inside_M, other=0.0)
        scale_O = tl.load(scales + group * NUM_OUT + o, mask=inside_O, other=0.0)
        total_MO += tl.dot(x_Mi, weight_iO) * (x_scale_M[:, None] * scale_O[None, :])
    if HAS_BIAS:
        total_MO += tl.load(bias + o, mask=inside_O, other=0.0).to(tl.float32)[None, :]
    out_at = out + m.to(tl.int64)[:, None] * NUM_OUT + o[None, :]
    tl.store(out_at, total_MO.to(out.dtype.element_ty), mask=inside_M[:, None] & inside_O[None, :])


class BlockFp8Linear:
    """A weight in ``fp8-group`` with groups of 128, in the format of a device."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        where = device.torch_device
        self.spec = spec
        self._kind = kind = format_of(device)
        self._target = Target.of(device)
        shape = (spec.out_features, spec.in_features)
        self._weight_OI = torch.zeros(shape, dtype=kind.dtype, device=where)
        scales = (spec.in_features // GROUP, spec.out_features)
        self._scale_GO = torch.ones(scales, dtype=torch.float32, device=where)
        self._bias_O: Tensor | None = None
        if spec.has_bias:
            self._bias_O = torch.zeros(spec.out_features, dtype=spec.dtype, device=where)

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Convert the rows, and copy their scales transposed."""
        converted = self._kind.converted(part)
        end = row_begin + len(converted["weight"])
        self._weight_OI[row_begin:end].copy_(converted["weight"])
        self._scale_GO[:, row_begin:end].copy_(converted["scale"].t())

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Copy the bias."""
        assert self._bias_O is not None, "the spec has no bias"
        self._bias_O[begin : begin + len(bias)].copy_(bias)

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        x_MI = x_MI if x_MI.stride(1) == 1 else x_MI.contiguous()
        num_rows, num_out = len(x_MI), self.spec.out_features
        values_MI, scales_MG = quantize_rows(x_MI, self._target, kind=self._kind)
        out_MO = torch.empty((num_rows, num_out), dtype=x_MI.dtype, device=x_MI.device)
        if not num_rows:
            return out_MO
        blocks = FEW if num_rows <= 16 else SOME if num_rows <= 64 else MANY
        multiply_groups_kernel[(cdiv(num_out, blocks.features), cdiv(num_rows, blocks.rows))](
            values_MI,
            scales_MG,
            self._weight_OI,
            self._scale_GO,
            out_MO if self._bias_O is None else self._bias_O,
            out_MO,
            num_rows,
            len(values_MI),
            NUM_OUT=num_out,
            NUM_GROUPS=self._scale_GO.shape[0],
            GROUP_SIZE=GROUP,
            BLOCK_M=blocks.rows,
            BLOCK_O=blocks.features,
            HAS_BIAS=self._bias_O is not None,
            STAGES=self._target.stages(3),
            **self._target.launch(blocks.num_warps),
        )
        return out_MO

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Refuse: an embedding is never kept in this layout."""
        raise AssertionError("fp8-group weights are no embedding tables")

    @property
    def num_bytes(self) -> int:
        """Bytes of weight, scales and bias."""
        bias = 0 if self._bias_O is None else self._bias_O.nbytes
        return self._weight_OI.nbytes + self._scale_GO.nbytes + bias


def build_block_fp8(spec: LinearSpec, device: OpDevice) -> BlockFp8Linear:
    """Build the provider for ``spec``."""
    return BlockFp8Linear(spec, device)
