"""Matrices in 8-bit floating point, a scale for every 128 input features.

Activations are quantised by a kernel of ours, or by the one of the gate; the product is the
vendor library's, which scales each group as it adds it up.

Shapes: M rows of activations, O output and I input features, G groups.
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

from headstock.ops.linear import CanonicalWeight, GroupedActivations, LinearSpec
from headstock_triton.fp8_formats import OCP, Fp8Format
from headstock_triton.overlap import begin
from headstock_triton.target import Target, cdiv

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

GROUP = 128
"""Input features that share a scale: what the library multiplies by."""
OUT_UNIT = 16
"""Output features must divide by this."""
BLOCKS_UNIT = 4
"""Groups must divide by this for scales of blocks."""
ROW_UNIT = 4
"""Rows are padded to a multiple of this: what the library asks of scales."""
FEW_ROWS = 64
"""Up to so many a program takes one row, so that there are programs for the whole card."""


@triton.jit(do_not_specialize=["M", "PADDED"])
def quantize_rows_kernel(
    x,
    out,
    scales,
    M,
    PADDED,
    x_stride,
    SIZE: tl.constexpr,
    IS_GATED: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    LARGEST: tl.constexpr,
    PDL: tl.constexpr,
):
    """Quantise GROUPS groups of BLOCK_M rows: program_id(0) counts rows, program_id(1) groups.

    Gated, a row has SIZE gates and then SIZE ups, and silu(gate) * up is quantised.
    """
    begin(PDL)
    row_M = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    group_G = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    i = tl.arange(0, GROUP_SIZE)
    column_Gi = group_G[:, None] * GROUP_SIZE + i[None, :]
    inside = (row_M < M)[:, None, None] & (column_Gi < SIZE)[None, :, :]
    at = row_M.to(tl.int64)[:, None, None] * x_stride + column_Gi[None, :, :]
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if IS_GATED:
        up = tl.load(x + at + SIZE, mask=inside, other=0.0).to(tl.float32)
        value = value * tl.sigmoid(value) * up
    largest_MG = tl.max(tl.abs(value), axis=2)
    scale_MG = tl.where(largest_MG > 0, largest_MG / LARGEST, 1.0)
    quantised = (value / scale_MG[:, :, None]).to(out.dtype.element_ty)
    at = row_M.to(tl.int64)[:, None, None] * SIZE + column_Gi[None, :, :]
    tl.store(out + at, quantised, mask=inside)
    scale_at = scales + group_G[None, :] * PADDED + row_M[:, None]
    tl.store(scale_at, scale_MG, mask=(row_M < PADDED)[:, None] & (group_G < SIZE // GROUP_SIZE))


def quantize_rows(
    x_MI: Tensor,
    target: Target,
    *,
    group_size: int = GROUP,
    is_gated: bool = False,
    kind: Fp8Format = OCP,
) -> tuple[Tensor, Tensor]:
    """Return x in 8-bit floats, its rows padded to a multiple of ROW_UNIT, and its scales.

    Args:
        x_MI: bfloat16, float16 or float32, contiguous in a row. Gated: gates, then ups. [M, 2 I]
        target: What the kernel is compiled for.
        group_size: Columns that share a scale.
        is_gated: Whether silu(gate) * up is quantised.
        kind: Format of the floats.

    Returns:
        [M', I], and float32 [M', G] with neighbouring rows next to each other.
    """
    num_rows, size = x_MI.shape[0], x_MI.shape[1] // (2 if is_gated else 1)
    padded, num_groups = cdiv(num_rows, ROW_UNIT) * ROW_UNIT, size // group_size
    out_MI = torch.empty((padded, size), dtype=kind.dtype, device=x_MI.device)
    scales_GM = torch.empty((num_groups, padded), dtype=torch.float32, device=x_MI.device)
    block_m, groups = (1, 8) if num_rows <= FEW_ROWS else (4, 4 if is_gated else 8)
    quantize_rows_kernel[(cdiv(padded, block_m), cdiv(num_groups, groups))](
        x_MI,
        out_MI,
        scales_GM,
        num_rows,
        padded,
        x_MI.stride(0),
        SIZE=size,
        IS_GATED=is_gated,
        GROUP_SIZE=group_size,
        GROUPS=groups,
        BLOCK_M=block_m,
        LARGEST=kind.largest,
        **target.launch(4),
    )
    return out_MI, scales_GM.t()


class Fp8Gate:
    """The quantising activation on one target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def silu_and_mul_groups(self, gate_up_TG: Tensor, *, group_size: int) -> tuple[Tensor, Tensor]:
        """See :func:`headstock.ops.activation.silu_and_mul_groups`.

        The results are the first rows of larger ones: a product needs its rows padded.
        """
        num_rows = gate_up_TG.shape[0]
        values_TF, scales_TG = quantize_rows(
            gate_up_TG, self._target, group_size=group_size, is_gated=True
        )
        return values_TF[:num_rows], scales_TG[:num_rows]


def with_padding(x: GroupedActivations) -> tuple[Tensor, Tensor]:
    """Return values and scales with rows padded to a multiple of ROW_UNIT, scales row by row.

    Those that our own kernels made are the first rows of such tensors, and are not copied.
    """
    values_MI, scale_MG = x
    num_rows, size = values_MI.shape
    num_groups, padded = scale_MG.shape[1], cdiv(num_rows, ROW_UNIT) * ROW_UNIT
    has_room = (
        values_MI.is_contiguous()
        and values_MI.untyped_storage().nbytes() >= padded * size
        and values_MI.storage_offset() == scale_MG.storage_offset() == 0
        and scale_MG.stride() == (1, padded)
    )
    if has_room:
        values_PI = values_MI.as_strided((padded, size), (size, 1))
        return values_PI, scale_MG.as_strided((padded, num_groups), (1, padded))
    values_PI = values_MI.new_zeros((padded, size))
    values_PI[:num_rows].copy_(values_MI)
    scale_GP = scale_MG.new_ones((num_groups, padded))
    scale_GP[:, :num_rows].copy_(scale_MG.t())
    return values_PI, scale_GP.t()


class Fp8Linear:
    """A weight in ``fp8-group`` with groups of 128."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        where = device.torch_device
        self._target = Target.of(device)
        self._dtype = spec.dtype
        shape = (spec.out_features, spec.in_features)
        self._weight_OI = torch.zeros(shape, dtype=torch.float8_e4m3fn, device=where)
        scales = (spec.in_features // GROUP, spec.out_features)
        self._scale_GO = torch.ones(scales, dtype=torch.float32, device=where)
        self._scale_b: Tensor | None = None
        self._can_share = scales[0] % BLOCKS_UNIT == 0 and spec.out_features % GROUP == 0
        self._is_shared = [False] * (spec.out_features // GROUP)
        self._bias_O: Tensor | None = None
        if spec.has_bias:
            self._bias_O = torch.zeros(spec.out_features, dtype=spec.dtype, device=where)

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Copy the rows, and their scales transposed.

        Weights are loaded before their first product: what graphs hold of the scales stays.
        """
        rows, scale_RG = part["weight"], part["scale"]
        end = row_begin + rows.shape[0]
        self._weight_OI[row_begin:end].copy_(rows)
        self._scale_GO[:, row_begin:end].copy_(scale_RG.t())
        self._scale_b = None
        if self._can_share:
            self._look_at_blocks(row_begin // GROUP, -(-end // GROUP))

    def _look_at_blocks(self, first: int, end: int) -> None:
        """Note in which blocks of 128 rows, of ``first`` to ``end``, all rows have one scale.

        Here, since a product may not wait for the device.
        """
        scale_GBR = self._scale_GO[:, first * GROUP : end * GROUP].unflatten(1, (-1, GROUP))
        is_shared_B = (scale_GBR == scale_GBR[:, :, :1]).all(dim=2).all(dim=0)
        self._is_shared[first:end] = is_shared_B.tolist()

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Copy the bias."""
        assert self._bias_O is not None, "the spec has no bias"
        self._bias_O[begin : begin + bias.shape[0]].copy_(bias)

    def __call__(self, x_MI: Tensor | GroupedActivations) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        if isinstance(x_MI, GroupedActivations):
            num_rows = x_MI.values_MI.shape[0]
            quantised_MI, scales_MG = with_padding(x_MI)
        else:
            num_rows = x_MI.shape[0]
            x_MI = x_MI if x_MI.stride(1) == 1 else x_MI.contiguous()
            quantised_MI, scales_MG = quantize_rows(x_MI, self._target)
        out_MO = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            quantised_MI,
            self._weight_OI.t(),
            scale_a=scales_MG,
            scale_b=self._scales(),
            out_dtype=self._dtype,
        )[:num_rows]
        return out_MO if self._bias_O is None else out_MO + self._bias_O

    def _scales(self) -> Tensor:
        """Return the scales of blocks of 128 rows, where rows share them; else of rows."""
        if self._scale_b is None:
            self._scale_b = self._scale_GO
            if self._can_share and all(self._is_shared):
                self._scale_b = self._scale_GO[:, ::GROUP].t().contiguous().t()
        return self._scale_b

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Refuse: an embedding is never kept in this layout."""
        raise AssertionError("fp8-group weights are no embedding tables")

    @property
    def num_bytes(self) -> int:
        """Bytes of weight, scales and bias."""
        bias = 0 if self._bias_O is None else self._bias_O.nbytes
        return self._weight_OI.nbytes + self._scale_GO.nbytes + bias


def build_fp8(spec: LinearSpec, device: OpDevice) -> Fp8Linear:
    """Build the provider for ``spec``."""
    return Fp8Linear(spec, device)
