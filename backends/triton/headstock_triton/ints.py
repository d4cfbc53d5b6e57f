"""Weights in ``int8-group`` and ``int4-group``: packed for the card, multiplied as they are packed.

Shapes: M rows of activations, O output features, I input features, R of the output features, G
groups along I, T ids, W words.
"""

# Triton types constants by a class of its own.
# pyright: reportArgumentType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstock.ops.linear import INT4_GROUP, CanonicalWeight, LinearSpec
from headstock_triton.int_kernels import (
    EXPONENT,
    few_rows_kernel,
    floats_kernel,
    sum_parts_kernel,
    tiles_kernel,
)
from headstock_triton.int_warps import MAGIC, warps_kernel
from headstock_triton.target import Target, cdiv, next_power_of_2

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

GROUP_UNIT = 16
"""Group sizes must divide by this: the least that a step of a tensor core takes at once."""
MAX_SLAB = 32
"""Neighbouring input features that have a field of a chunk's words, at most."""
FEW_ROWS = 2
"""Up to as many rows are multiplied by plain arithmetic where warps have no way of their own."""
WARP_ROWS = {4: 32, 8: 16}
"""Up to as many rows each warp turns weights of its own into numbers, by their bits."""
WARP_ROWS_OF_SMALL_GROUPS = 8
"""The same for bytes in groups of 32, whose scales are a burden."""
FUSED_ROWS = 64
"""Up to as many rows turn weights into floats as they go. For more rows each weight would be turned
anew for every tile of them: the library multiplies a whole piece of the weights, made once."""
WIDE_FUSED_ROWS = 128
"""The same where output features fill the card twice over."""
FUSED_DTYPES = (torch.bfloat16, torch.float16)
"""Of activations that tensor cores multiply as they are; others are left to the library."""
LARGE_TILES = frozenset({80, 90})
"""Compute capabilities with shared memory enough for tiles of 128 rows. That of 100 is as large,
but what Triton 3.7 compiles for it is a trap."""
TILE_FEATURES = 64
"""Output features of a tile of tensor cores."""
WEIGHTS_AT_ONCE = 1 << 24
"""Weights that are made floats for the library at once: few enough to stay in the L2 cache."""
WEIGHTS_FOR_FEW_ROWS = 1 << 26
"""The same up to MANY_ROWS, where larger products are worth more than the cache."""
MANY_ROWS = 512
PIECE_UNIT = 128
"""Output features of a piece are a multiple: the library has fast products of no other number."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How a matrix is cut into words; see :mod:`headstock_triton.int_kernels`."""

    in_features: int
    group_size: int
    bits: int

    @property
    def slab(self) -> int:
        """Input features that have one field of a chunk: a power of 2 that divides the group."""
        return min(MAX_SLAB, self.group_size & -self.group_size)

    @property
    def chunk(self) -> int:
        """Input features of a chunk."""
        return self.slab * 32 // self.bits

    @property
    def num_words(self) -> int:
        """Words of a row, the last chunk filled up."""
        return cdiv(self.in_features, self.chunk) * self.slab

    @property
    def run(self) -> int:
        """Fields of a chunk in a row that are sure to have one scale."""
        if self.chunk % self.group_size and self.group_size % self.chunk:
            return 1
        return min(self.group_size, self.chunk) // self.slab

    def constants(self) -> dict[str, Any]:
        """Return what kernels are compiled for."""
        return {
            "NUM_IN": self.in_features,
            "NUM_WORDS": self.num_words,
            "GROUP_SIZE": self.group_size,
            "BITS": self.bits,
            "SLAB": self.slab,
            "RUN": self.run,
        }

    def pack(self, weight: Tensor) -> Tensor:
        """Return canonical rows as words. [R, I] or bytes of nibbles [R, I / 2] to int32 [R, W]"""
        if self.bits == 8:
            fields_RI = weight.view(torch.uint8) ^ 128
        else:
            fields_RI = torch.stack((weight & 15, weight >> 4), dim=-1).flatten(1)
        fill = self.num_words * (32 // self.bits) - self.in_features
        fields_RI = torch.nn.functional.pad(fields_RI, (0, fill))
        fields_RCkS = fields_RI.unflatten(1, (-1, 32 // self.bits, self.slab))
        words_RCS = torch.zeros_like(fields_RCkS[:, :, 0], dtype=torch.int32)
        for k in range(32 // self.bits):
            words_RCS |= fields_RCkS[:, :, k].to(torch.int32) << (k * self.bits)
        return words_RCS.flatten(1)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How the products of tensor cores are cut.

    Attributes:
        block_m: Rows of a tile.
        block_o: Output features of a tile.
        splits: Parts of the input features, added up by a kernel of their own.
        warps: Of a program.
        stages: Chunks on their way at once.
    """

    block_m: int
    block_o: int
    splits: int
    warps: int
    stages: int


def choose_tiling(
    num_rows: int, out_features: int, num_chunks: int, target: Target, bits: int = 4
) -> Tiling:
    """Return a tiling of which there are programs enough for the card, each with some chunks.

    The tiles of activations fill the shared memory: the larger they are, the fewer programs share a
    multiprocessor, and the fewer chunks can be on their way.
    """
    block_m = max(16, min(128 if target.arch in LARGE_TILES else 64, next_power_of_2(num_rows)))
    num_tiles = cdiv(num_rows, block_m) * cdiv(out_features, TILE_FEATURES)
    per_sm = 3 if block_m < 64 or bits == 8 else 1
    most = max(1, min(8, per_sm * target.num_sms // num_tiles, num_chunks // 2))
    splits = 1 << (most.bit_length() - 1)
    fills_card = num_tiles > 2 * target.num_sms
    stages = 2 if block_m == 128 or (block_m == 64 and bits == 4 and fills_card) else 3
    return Tiling(block_m, TILE_FEATURES, splits, 4, stages)


@dataclass(frozen=True, slots=True)
class WarpTile:
    """What a program of :func:`warps_kernel` computes.

    Attributes:
        block_m: Rows.
        block_o: Output features.
        warps: Which take chunks of the input features by turns.
        abreast: Warps that share a chunk, and the output features among them.
    """

    block_m: int
    block_o: int
    warps: int
    abreast: int = 1


def choose_warp_tile(num_rows: int, out_features: int, bits: int, target: Target) -> WarpTile:
    """Return a tile with warps enough to keep the memory busy, yet with work for each.

    The more rows, the more of the time goes into reading activations: warps abreast read them once.
    """
    is_narrow = out_features <= 32 * target.num_sms
    warps = 8 if is_narrow else 4
    if num_rows <= 8:
        return WarpTile(8, 32 if bits == 4 else 16, warps)
    if num_rows <= 16:
        return WarpTile(16, 32, warps) if bits == 4 else WarpTile(16, 32, warps // 2, 2)
    return WarpTile(32, 32, 4, 2) if is_narrow else WarpTile(32, 64, 2, 4)


class IntLinear:
    """A weight of integers, each group of input features with a scale."""

    def __init__(self, spec: LinearSpec, device: OpDevice) -> None:
        where = device.torch_device
        self._target, self._spec = Target.of(device), spec
        bits = 4 if spec.layout == INT4_GROUP else 8
        self._packing = Packing(spec.in_features, spec.group_size, bits)
        shape = (spec.out_features, self._packing.num_words)
        self._words_OW = torch.zeros(shape, dtype=torch.int32, device=where)
        scales = (spec.out_features, spec.in_features // spec.group_size)
        self._scale_OG = torch.zeros(scales, dtype=torch.float32, device=where)
        self._minimum_OG = self._scale_OG
        if bits == 4:
            self._minimum_OG = torch.zeros(scales, dtype=torch.float32, device=where)
        self._bias_O: Tensor | None = None
        if spec.has_bias:
            self._bias_O = torch.zeros(spec.out_features, dtype=spec.dtype, device=where)
        self._is_symmetric, self._has_multiplied = True, False

    def load(self, part: CanonicalWeight, row_begin: int) -> None:
        """Pack the rows.

        Raises:
            ValueError: Products with the minima left out have been captured, and these have some.
        """
        where, rows = self._words_OW.device, slice(row_begin, row_begin + part["weight"].shape[0])
        self._words_OW[rows] = self._packing.pack(part["weight"].to(where))
        self._scale_OG[rows] = part["scale"].to(where)
        if self._packing.bits == 4:
            self._minimum_OG[rows] = part["minimum"].to(where)
            if self._is_symmetric and not torch.equal(part["minimum"], part["scale"] * -8.0):
                if self._has_multiplied:
                    message = "Symmetric int4 weights can be replaced by symmetric ones only."
                    raise ValueError(message)
                self._is_symmetric = False

    def load_bias(self, bias: Tensor, begin: int) -> None:
        """Copy the bias."""
        assert self._bias_O is not None, "the spec has no bias"
        self._bias_O[begin : begin + bias.shape[0]].copy_(bias)

    def __call__(self, x_MI: Tensor) -> Tensor:
        """Return x·Wᵀ + bias. [M, O]"""
        num_rows = x_MI.shape[0]
        if x_MI.stride(1) != 1:
            x_MI = x_MI.contiguous()
        is_narrow = x_MI.dtype in FUSED_DTYPES
        if num_rows <= self._warp_rows and is_narrow:
            return self.by_warps(x_MI)
        if num_rows <= FEW_ROWS:
            return self.by_few_rows(x_MI)
        if num_rows <= self._fused_rows and is_narrow:
            return self.by_tiles(x_MI)
        return self.by_library(x_MI)

    @property
    def _warp_rows(self) -> int:
        packing = self._packing
        if self._target.kind != "cuda" or self._target.arch < 80 or packing.slab != MAX_SLAB:
            return 0
        is_burdened = packing.bits == 8 and packing.group_size == MAX_SLAB
        return WARP_ROWS_OF_SMALL_GROUPS if is_burdened else WARP_ROWS[packing.bits]

    @property
    def _fused_rows(self) -> int:
        is_wide = self._spec.out_features > 2 * TILE_FEATURES * self._target.num_sms
        return WIDE_FUSED_ROWS if is_wide else FUSED_ROWS

    def by_few_rows(self, x_MI: Tensor, block_o: int = 2) -> Tensor:
        """Multiply at the speed at which the words can be read, if the rows are few. [M, O]"""
        num_rows, out_features = x_MI.shape[0], self._spec.out_features
        out_MO = x_MI.new_empty((num_rows, out_features))
        if not num_rows:
            return out_MO
        block_q = max(32, min(128, next_power_of_2(self._packing.num_words // 4)))
        few_rows_kernel[(cdiv(out_features, block_o),)](
            x_MI,
            self._words_OW,
            self._scale_OG,
            self._minimum_OG,
            self._bias_or_any(),
            out_MO,
            out_features,
            x_MI.stride(0),
            EXPONENT.value,
            M=num_rows,
            BLOCK_M=next_power_of_2(num_rows),
            BLOCK_O=block_o,
            BLOCK_Q=block_q,
            HAS_BIAS=self._bias_O is not None,
            **self._packing.constants(),
            **self._target.launch(block_q // 32),
        )
        return out_MO

    def by_warps(self, x_MI: Tensor, tile: WarpTile | None = None) -> Tensor:
        """Multiply by tensor cores, each warp by weights of its own. [M, O]"""
        num_rows, out_features = x_MI.shape[0], self._spec.out_features
        bits, self._has_multiplied = self._packing.bits, True
        tile = tile or choose_warp_tile(num_rows, out_features, bits, self._target)
        out_MO = x_MI.new_empty((num_rows, out_features))
        constants = self._packing.constants()
        del constants["SLAB"]
        warps_kernel[(cdiv(out_features, tile.block_o), cdiv(num_rows, tile.block_m))](
            x_MI,
            self._words_OW,
            self._scale_OG,
            self._minimum_OG,
            self._bias_or_any(),
            out_MO,
            num_rows,
            out_features,
            x_MI.stride(0),
            MAGIC[x_MI.dtype],
            WARPS=tile.warps,
            ABREAST=tile.abreast,
            BLOCK_M=tile.block_m,
            BLOCK_O=tile.block_o,
            HAS_LEAST=bits == 4 and not self._is_symmetric,
            HAS_BIAS=self._bias_O is not None,
            **constants,
            **self._target.launch(tile.warps * tile.abreast),
        )
        return out_MO

    def by_tiles(self, x_MI: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Multiply by tensor cores, weights turned into floats on the way. [M, O]"""
        num_rows, out_features = x_MI.shape[0], self._spec.out_features
        num_chunks = self._packing.num_words // self._packing.slab
        tiling = tiling or choose_tiling(
            num_rows, out_features, num_chunks, self._target, self._packing.bits
        )
        chunks = cdiv(num_chunks, tiling.splits)
        splits = cdiv(num_chunks, chunks)
        out_MO = parts = x_MI.new_empty((num_rows, out_features))
        if splits > 1:
            parts = x_MI.new_empty((splits, num_rows, out_features), dtype=torch.float32)
        grid = (cdiv(num_rows, tiling.block_m), cdiv(out_features, tiling.block_o), splits)
        tiles_kernel[grid](
            x_MI,
            self._words_OW,
            self._scale_OG,
            self._minimum_OG,
            self._bias_or_any(),
            parts,
            num_rows,
            out_features,
            x_MI.stride(0),
            CHUNKS=chunks,
            BLOCK_M=tiling.block_m,
            BLOCK_O=tiling.block_o,
            HAS_BIAS=self._bias_O is not None and splits == 1,
            **self._packing.constants(),
            **self._target.launch(tiling.warps)
            | {"num_stages": self._target.stages(tiling.stages)},
        )
        return self._sum_parts(parts, out_MO) if splits > 1 else out_MO

    def _sum_parts(self, parts: Tensor, out_MO: Tensor) -> Tensor:
        block = 1024
        sum_parts_kernel[(cdiv(out_MO.numel(), block),)](
            parts,
            self._bias_or_any(),
            out_MO,
            out_MO.numel(),
            out_MO.shape[1],
            NUM_PARTS=parts.shape[0],
            BLOCK=block,
            HAS_BIAS=self._bias_O is not None,
            **self._target.launch(4),
        )
        return out_MO

    def by_library(self, x_MI: Tensor) -> Tensor:
        """Multiply by the vendor's library, weights turned into floats piece by piece. [M, O]"""
        out_features = self._spec.out_features
        out_MO = x_MI.new_empty((x_MI.shape[0], out_features))
        at_once = WEIGHTS_FOR_FEW_ROWS if x_MI.shape[0] <= MANY_ROWS else WEIGHTS_AT_ONCE
        step = max(1, at_once // self._spec.in_features // PIECE_UNIT) * PIECE_UNIT
        for begin in range(0, out_features, step):
            end = min(begin + step, out_features)
            weight_RI = x_MI.new_empty((end - begin, self._spec.in_features))
            self._as_floats(weight_RI, None, begin)
            out_MR = out_MO[:, begin:end]
            if self._bias_O is None:
                torch.mm(x_MI, weight_RI.t(), out=out_MR)
            else:
                torch.addmm(self._bias_O[begin:end], x_MI, weight_RI.t(), out=out_MR)
        return out_MO

    def rows(self, ids_T: Tensor, first: int) -> Tensor:
        """Look up rows; zeros for ids that are not here. [T, I]"""
        shape = (ids_T.shape[0], self._spec.in_features)
        out_TI = torch.empty(shape, dtype=self._spec.dtype, device=ids_T.device)
        self._as_floats(out_TI, ids_T, first)
        return out_TI if self._spec.row_scale == 1 else out_TI.mul_(self._spec.row_scale)

    def _as_floats(self, out_RI: Tensor, ids_R: Tensor | None, first: int) -> None:
        """Turn the rows ``ids_R`` less ``first``, or those from ``first`` on, into floats."""
        count, num_quads, block_r = out_RI.shape[0], self._packing.num_words // 4, 4
        if not count:
            return
        block_q = max(8, min(64, next_power_of_2(num_quads)))
        floats_kernel[(cdiv(count, block_r), cdiv(num_quads, block_q))](
            self._words_OW,
            self._scale_OG,
            self._minimum_OG,
            self._words_OW if ids_R is None else ids_R,
            out_RI,
            first,
            count,
            self._spec.out_features,
            BLOCK_R=block_r,
            BLOCK_Q=block_q,
            HAS_IDS=ids_R is not None,
            **self._packing.constants(),
            **self._target.launch(4),
        )

    def _bias_or_any(self) -> Tensor:
        return self._scale_OG if self._bias_O is None else self._bias_O

    @property
    def num_bytes(self) -> int:
        """Bytes of words, scales and bias."""
        held = [self._words_OW, self._scale_OG]
        held += [self._minimum_OG] if self._packing.bits == 4 else []
        held += [] if self._bias_O is None else [self._bias_O]
        return sum(tensor.nbytes for tensor in held)


def build_int(spec: LinearSpec, device: OpDevice) -> IntLinear:
    """Build the provider for ``spec``."""
    return IntLinear(spec, device)
