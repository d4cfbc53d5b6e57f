"""The experts of a mixture, all of a layer's in four launches.

Choices are lined up by expert; each expert multiplies its rows, tile by tile; a token's results
are added up in the order of its choices, so that no other token changes them.

Shapes: T tokens, E experts, k experts of a token, N = T · k entries; D hidden size, F features
between an expert's matrices. In kernels: M rows of a tile, J output features, I input features.
"""

# ruff: noqa: ANN001, ANN201 - arguments of kernels are typed by their launch
# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from headstock.ops.linear import (
    DENSE,
    FP8_GROUP,
    INT4_GROUP,
    INT8_GROUP,
    MXFP4,
    CanonicalWeight,
)
from headstock.ops.moe import ExpertsSpec, Matrix
from headstock_triton.activation import activate, clip
from headstock_triton.fp8_formats import format_of
from headstock_triton.overlap import begin
from headstock_triton.routing import LineUp, Routing
from headstock_triton.target import Target, cdiv
from headstock_triton.tiles import load_rows, multiply_add

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

MAX_EXPERTS = 512
"""Experts of a layer that are lined up."""
SUM_BLOCK = 1024
"""Features that a program adds up."""


@triton.jit
def gate_up_kernel(
    x,
    weight,
    scale,
    minimum,
    bias,
    entries,
    tiles,
    out,
    x_stride,
    p0,
    p1,
    K: tl.constexpr,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_I: tl.constexpr,
    GROUP: tl.constexpr,
    IS_INT4: tl.constexpr,
    IS_FP4: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    KIND: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute activation(gate x) * up x for BLOCK_J features of one tile of rows.

    Without gates, activation(up x): what is said of gates is then of up.
    """
    begin(PDL)
    num_blocks: tl.constexpr = (NUM_OUT + BLOCK_J - 1) // BLOCK_J
    tile = tiles + tl.program_id(0) // num_blocks * 3
    expert = tl.load(tile)
    if expert < 0:
        return
    end = tl.load(tile + 2)
    row_M = tl.load(tile + 1) + tl.arange(0, BLOCK_M)
    # Rows past the last one repeat it, and are not stored.
    token_M = tl.load(entries + tl.minimum(row_M, end - 1)) // K
    feature_J = tl.program_id(0) % num_blocks * BLOCK_J + tl.arange(0, BLOCK_J)
    inside_J = feature_J < NUM_OUT
    packing: tl.constexpr = 2 if IS_INT4 else 1
    i = tl.arange(0, BLOCK_I // packing)
    x_at = x + token_M.to(tl.int64)[:, None] * x_stride + packing * i[None, :]
    lines: tl.constexpr = (2 if HAS_GATE else 1) * NUM_OUT
    line_J = expert.to(tl.int64) * lines + feature_J
    gate_at = weight + line_J[None, :] * (NUM_IN // packing) + i[:, None]
    up_at = gate_at + NUM_OUT * (NUM_IN // packing)
    num_groups: tl.constexpr = NUM_IN // GROUP if GROUP else 0
    up_scales: tl.constexpr = NUM_OUT * num_groups
    scale_at, minimum_at = scale + line_J * num_groups, minimum + line_J * num_groups
    gate_MJ = tl.zeros((BLOCK_M, BLOCK_J), tl.float32)
    up_MJ = tl.full((BLOCK_M, BLOCK_J), 0.0 if HAS_GATE else 1.0, tl.float32)
    for at in range(0, NUM_IN, BLOCK_I):
        x_MI, odd_MI = load_rows(x_at, at, NUM_IN, BLOCK_I, IS_INT4)
        gate_MJ = multiply_add(
            gate_MJ, x_MI, odd_MI, gate_at, scale_at, minimum_at, inside_J, at,
            NUM_IN, NUM_OUT, BLOCK_J, BLOCK_I, GROUP, IS_INT4, IS_FP4, PRECISION,
        )  # fmt: skip
        if HAS_GATE:
            up_MJ = multiply_add(
                up_MJ, x_MI, odd_MI, up_at, scale_at + up_scales, minimum_at + up_scales, inside_J,
                at, NUM_IN, NUM_OUT, BLOCK_J, BLOCK_I, GROUP, IS_INT4, IS_FP4, PRECISION,
            )  # fmt: skip
    if HAS_BIAS:
        gate_MJ += tl.load(bias + line_J, mask=inside_J, other=0.0).to(tl.float32)[None, :]
        if HAS_GATE:
            up_J = tl.load(bias + line_J + NUM_OUT, mask=inside_J, other=0.0)
            up_MJ += up_J.to(tl.float32)[None, :]
    gate_MJ, up_MJ = clip(gate_MJ, up_MJ, p0, KIND)
    y_MJ = activate(gate_MJ, p0, p1, 0.0, 0.0, KIND) * up_MJ
    out_at = out + row_M.to(tl.int64)[:, None] * NUM_OUT + feature_J[None, :]
    mask = (row_M < end)[:, None] & inside_J[None, :]
    tl.store(out_at, y_MJ.to(out.dtype.element_ty), mask=mask)


@triton.jit
def down_kernel(
    x,
    weight,
    scale,
    minimum,
    bias,
    entries,
    shares,
    tiles,
    out,
    NUM_IN: tl.constexpr,
    NUM_OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_I: tl.constexpr,
    GROUP: tl.constexpr,
    IS_INT4: tl.constexpr,
    IS_FP4: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr,
    PDL: tl.constexpr,
):
    """Compute BLOCK_J features of share · down(x) for one tile of rows, each to its entry."""
    begin(PDL)
    num_blocks: tl.constexpr = (NUM_OUT + BLOCK_J - 1) // BLOCK_J
    tile = tiles + tl.program_id(0) // num_blocks * 3
    expert = tl.load(tile)
    if expert < 0:
        return
    end = tl.load(tile + 2)
    row_M = tl.load(tile + 1) + tl.arange(0, BLOCK_M)
    inside_M = row_M < end
    row_M = tl.minimum(row_M, end - 1)
    feature_J = tl.program_id(0) % num_blocks * BLOCK_J + tl.arange(0, BLOCK_J)
    inside_J = feature_J < NUM_OUT
    packing: tl.constexpr = 2 if IS_INT4 else 1
    i = tl.arange(0, BLOCK_I // packing)
    x_at = x + row_M.to(tl.int64)[:, None] * NUM_IN + packing * i[None, :]
    line_J = expert.to(tl.int64) * NUM_OUT + feature_J
    weight_at = weight + line_J[None, :] * (NUM_IN // packing) + i[:, None]
    num_groups: tl.constexpr = NUM_IN // GROUP if GROUP else 0
    scale_at, minimum_at = scale + line_J * num_groups, minimum + line_J * num_groups
    y_MJ = tl.zeros((BLOCK_M, BLOCK_J), tl.float32)
    for at in range(0, NUM_IN, BLOCK_I):
        x_MI, odd_MI = load_rows(x_at, at, NUM_IN, BLOCK_I, IS_INT4)
        y_MJ = multiply_add(
            y_MJ, x_MI, odd_MI, weight_at, scale_at, minimum_at, inside_J, at,
            NUM_IN, NUM_OUT, BLOCK_J, BLOCK_I, GROUP, IS_INT4, IS_FP4, PRECISION,
        )  # fmt: skip
    if HAS_BIAS:
        y_MJ += tl.load(bias + line_J, mask=inside_J, other=0.0).to(tl.float32)[None, :]
    entry_M = tl.load(entries + row_M)
    y_MJ *= tl.load(shares + entry_M)[:, None]
    out_at = out + entry_M.to(tl.int64)[:, None] * NUM_OUT + feature_J[None, :]
    mask = inside_M[:, None] & inside_J[None, :]
    tl.store(out_at, y_MJ.to(out.dtype.element_ty), mask=mask)


@triton.jit
def sum_choices_kernel(x, experts, out, D, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Add up what the experts of token ``program_id(0)`` gave, first choice first."""
    begin(PDL)
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < D
    total = tl.zeros((BLOCK,), tl.float32)
    for choice in tl.static_range(K):  # pyright: ignore[reportGeneralTypeIssues]
        entry = token * K + choice
        is_there = tl.load(experts + entry) >= 0
        value = tl.load(x + entry * D + column, mask=inside & is_there, other=0.0)
        total += value.to(tl.float32)
    tl.store(out + token * D + column, total.to(out.dtype.element_ty), mask=inside)


@dataclass(frozen=True, slots=True)
class MoETuning:
    """Block shapes of both products: rows, output and input features, warps, stages.

    Attributes:
        block_m: Rows of a tile, for both.
        gate_up: (output features, input features, warps, stages); twice the output features are
            multiplied.
        down: Likewise.
    """

    block_m: int
    gate_up: tuple[int, int, int, int]
    down: tuple[int, int, int, int]


FEW = MoETuning(16, (32, 128, 4, 4), (64, 128, 4, 4))
"""Weights are read once and are all that counts: small blocks keep every multiprocessor busy."""
SOME = MoETuning(32, (64, 64, 4, 4), (128, 64, 4, 4))
MANY = MoETuning(64, (64, 64, 4, 4), (128, 64, 4, 4))
MOST = MoETuning(128, (64, 64, 8, 3), (128, 64, 8, 3))
LARGEST = MoETuning(128, (128, 64, 8, 3), (256, 64, 8, 3))
"""For cards whose blocks may have 144 KiB of shared memory."""


def choose_tuning(num_entries: int, spec: ExpertsSpec, target: Target) -> MoETuning:
    """Return block shapes for experts that have their share of the entries each."""
    share = num_entries / spec.num_experts
    if spec.dtype == torch.float32:  # without tensor cores: large blocks gain nothing
        return halved(FEW if share <= 8 else SOME)
    if spec.layout != DENSE and share > 32:  # a group's products take registers of their own
        return MANY
    most = LARGEST if target.has_large_blocks else MOST
    return FEW if share <= 8 else SOME if share <= 32 else MANY if share <= 64 else most


def halved(tuning: MoETuning) -> MoETuning:
    """Return the blocks with half of the input features: as many bytes, twice as wide."""
    (j, i, warps, stages), (down_j, down_i, down_warps, down_stages) = tuning.gate_up, tuning.down
    return MoETuning(
        tuning.block_m, (j, i // 2, warps, stages), (down_j, down_i // 2, down_warps, down_stages)
    )


class Matrices:
    """One matrix of every expert, one below the other, in the parts of its canonical layout."""

    def __init__(self, spec: ExpertsSpec, rows: int, size: int, device: OpDevice) -> None:
        where = device.torch_device
        self._kind = format_of(device) if spec.layout == FP8_GROUP else None
        self.is_fp4 = spec.layout == MXFP4
        self.is_int4 = spec.layout == INT4_GROUP or self.is_fp4
        packing = 2 if self.is_int4 else 1
        dtypes = {INT8_GROUP: torch.int8}
        dtypes |= dict.fromkeys((INT4_GROUP, MXFP4), torch.uint8)
        dtype = self._kind.dtype if self._kind else dtypes.get(spec.layout, spec.dtype)
        shape = (spec.num_experts, rows, size // packing)
        self.parts = {"weight": torch.zeros(shape, dtype=dtype, device=where)}
        groups = (spec.num_experts, rows, size // spec.group_size if spec.group_size else 0)
        names = {DENSE: (), INT4_GROUP: ("scale", "minimum")}.get(spec.layout, ("scale",))
        for name in names:
            self.parts[name] = torch.zeros(groups, dtype=torch.float32, device=where)
        self.bias: Tensor | None = None
        if spec.has_bias:
            self.bias = torch.zeros((spec.num_experts, rows), dtype=spec.dtype, device=where)
        self.group = spec.group_size

    def load(self, part: CanonicalWeight, expert: int, row_begin: int) -> None:
        """Copy the rows of one expert, 8-bit floats in the format of the device."""
        part = self._kind.converted(part) if self._kind else part
        for name, rows in part.items():
            self.parts[name][expert].narrow(0, row_begin, rows.shape[0]).copy_(rows)

    def load_bias(self, bias: Tensor, expert: int, begin: int) -> None:
        """Copy some of an expert's bias."""
        assert self.bias is not None, "the spec has no bias"
        self.bias[expert, begin : begin + bias.shape[0]].copy_(bias)

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Weights, scales, minima, biases, for kernels; those that there are not are not read."""
        weight = self.parts["weight"]
        scale = self.parts.get("scale", weight)
        bias = weight if self.bias is None else self.bias
        return weight, scale, self.parts.get("minimum", scale), bias

    def block_i(self, wanted: int) -> int:
        """Return the input features of a block: no more than share a scale."""
        return min(wanted, self.group & -self.group) if self.group else wanted

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        bias_bytes = 0 if self.bias is None else self.bias.nbytes
        return sum(part.nbytes for part in self.parts.values()) + bias_bytes


class FusedExperts:
    """All experts of a layer, row-major as checkpoints keep them: gate above up, and down."""

    def __init__(
        self, spec: ExpertsSpec, device: OpDevice, tuning: MoETuning | None = None
    ) -> None:
        self.spec = spec
        self._target = Target.of(device)
        self._routing = Routing(self._target)
        self._tuning = tuning
        size, between = spec.hidden_size, spec.intermediate_size
        self._gate_up = Matrices(spec, spec.inner_size, size, device)
        self._down = Matrices(spec, size, between, device)

    def load(self, part: CanonicalWeight, expert: int, matrix: Matrix, row_begin: int) -> None:
        """Copy the rows."""
        into = self._down if matrix == "down" else self._gate_up
        into.load(part, expert, self.spec.above(matrix) + row_begin)

    def load_bias(self, bias: Tensor, expert: int, matrix: Matrix, begin: int) -> None:
        """Copy a bias. [rows]"""
        into = self._down if matrix == "down" else self._gate_up
        into.load_bias(bias, expert, self.spec.above(matrix) + begin)

    def __call__(self, x_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor) -> Tensor:
        """Return each token's weighted sum over its experts. [T, D]"""
        num_tokens, k = experts_Tk.shape
        out_TD = torch.empty(
            (num_tokens, self.spec.hidden_size), dtype=x_TD.dtype, device=x_TD.device
        )
        if not num_tokens:
            return out_TD
        if x_TD.stride(1) != 1:
            x_TD = x_TD.contiguous()
        experts_Tk, weights_Tk = experts_Tk.contiguous(), weights_Tk.contiguous()
        tuning = self._tuning or choose_tuning(num_tokens * k, self.spec, self._target)
        line_up = self._routing.line_up(experts_Tk, self.spec.num_experts, tuning.block_m)
        between_NF = self._multiply_gate_up(x_TD, line_up, k, tuning)
        results_ND = self._multiply_down(between_NF, weights_Tk, line_up, tuning)
        size = self.spec.hidden_size
        sum_choices_kernel[(num_tokens, cdiv(size, SUM_BLOCK))](
            results_ND, experts_Tk, out_TD, size, K=k, BLOCK=SUM_BLOCK, **self._target.launch(4)
        )
        return out_TD

    def _multiply_gate_up(self, x_TD: Tensor, line_up: LineUp, k: int, tuning: MoETuning) -> Tensor:
        """Return activation(gate x) * up x of every row that is lined up. [N, F]"""
        activation = self.spec.activation
        size, between = self.spec.hidden_size, self.spec.intermediate_size
        block_j, block_i, warps, stages = tuning.gate_up
        options = {"num_stages": self._target.stages(stages)} | self._target.launch(warps)
        num_entries, num_tiles = line_up.entries_N.shape[0], line_up.tiles_L3.shape[0]
        out_NF = torch.empty((num_entries, between), dtype=x_TD.dtype, device=x_TD.device)
        gate_up_kernel[(num_tiles * cdiv(between, block_j),)](
            x_TD,
            *self._gate_up.arguments,
            line_up.entries_N,
            line_up.tiles_L3,
            out_NF,
            x_TD.stride(0),
            *activation.padded[:2],
            K=k,
            NUM_IN=size,
            NUM_OUT=between,
            BLOCK_M=tuning.block_m,
            BLOCK_J=block_j,
            BLOCK_I=self._gate_up.block_i(block_i),
            GROUP=self._gate_up.group,
            IS_INT4=self._gate_up.is_int4,
            IS_FP4=self._gate_up.is_fp4,
            HAS_BIAS=self.spec.has_bias,
            HAS_GATE=self.spec.is_gated,
            KIND=activation.number,
            PRECISION=self._target.precision(x_TD.dtype),
            **options,
        )
        return out_NF

    def _multiply_down(
        self, x_NF: Tensor, weights_Tk: Tensor, line_up: LineUp, tuning: MoETuning
    ) -> Tensor:
        """Return weight · down(x) of every row, at its entry. [N, D]"""
        size, between = self.spec.hidden_size, self.spec.intermediate_size
        block_j, block_i, warps, stages = tuning.down
        options = {"num_stages": self._target.stages(stages)} | self._target.launch(warps)
        out_ND = torch.empty((x_NF.shape[0], size), dtype=x_NF.dtype, device=x_NF.device)
        down_kernel[(line_up.tiles_L3.shape[0] * cdiv(size, block_j),)](
            x_NF,
            *self._down.arguments,
            line_up.entries_N,
            weights_Tk,
            line_up.tiles_L3,
            out_ND,
            NUM_IN=between,
            NUM_OUT=size,
            BLOCK_M=tuning.block_m,
            BLOCK_J=block_j,
            BLOCK_I=self._down.block_i(block_i),
            GROUP=self._down.group,
            IS_INT4=self._down.is_int4,
            IS_FP4=self._down.is_fp4,
            HAS_BIAS=self.spec.has_bias,
            PRECISION=self._target.precision(x_NF.dtype),
            **options,
        )
        return out_ND

    @property
    def num_bytes(self) -> int:
        """Bytes of the matrices."""
        return self._gate_up.num_bytes + self._down.num_bytes


def build_experts(spec: ExpertsSpec, device: OpDevice) -> FusedExperts:
    """Build the provider for ``spec``."""
    return FusedExperts(spec, device)
