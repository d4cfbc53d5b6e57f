"""Turns the blocks of GGUF tensors into canonical layouts, exactly where that can be.

A file's row is a run of blocks; a block packs 32 or 256 elements with their scales. What each type
becomes:

- F32, F16, BF16: ``dense``.
- Q4_0, Q4_1, Q4_K: ``int4-group`` of 32, exactly. Q2_K: of 16.
- Q8_0, Q5_0, IQ4_NL, IQ4_XS: ``int8-group`` of 32; Q3_K, Q6_K: ``int8-group`` of 16; exactly.
- IQ1_S, IQ2_XXS, IQ3_XXS, IQ3_S, TQ1_0, TQ2_0: ``int8-group`` of 32; IQ1_M, IQ2_XS, IQ2_S: of 16;
  exactly.
- MXFP4: ``mxfp4``.
- Q5_1, Q5_K: ``int8-group`` of 32, *rounded*: their 5 bits come with a minimum, which that layout
  lacks. The rounding is at most 1/254 of a group's largest magnitude, well under the 1/62 of its
  range that the 5 bits themselves may be off.

Shapes: R rows, B blocks a row, G groups a row, bytes in the last dimension.

Source:
    https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, the block structs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headstock.checkpoint.files import Array
from headstock.checkpoint.gguf_bits import Parts, halves, repack_nibbles, split_blocks
from headstock.checkpoint.gguf_grid_blocks import (
    iq1_m,
    iq1_s,
    iq2_s,
    iq2_xs,
    iq2_xxs,
    iq3_s,
    iq3_xxs,
    tq1_0,
    tq2_0,
)
from headstock.checkpoint.gguf_small_blocks import iq4_nl, iq4_xs, mxfp4, q2_k, q3_k
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import DENSE, INT4_GROUP, INT8_GROUP, MXFP4

_F32 = np.float32


@dataclass(frozen=True, slots=True)
class Block:
    """How a GGUF tensor type packs its elements.

    Attributes:
        name: As the format calls it.
        elements: In a block.
        num_bytes: Of a block.
        dtype: For dense types: of the elements.
        layout: The canonical layout it becomes.
        group_size: The layout's.
        convert: Bytes [R, bytes of a row] to canonical parts.
    """

    name: str
    elements: int
    num_bytes: int
    dtype: str
    layout: CanonicalLayout
    group_size: int
    convert: Callable[[Array], Parts]


def _dense(numpy_type: str) -> Callable[[Array], Parts]:
    return lambda rows: {"weight": rows.view(numpy_type)}


def _q4_0(rows: Array) -> Parts:
    blocks = split_blocks(rows, 18)
    scale = halves(blocks, 0)
    weight = repack_nibbles(blocks[..., 2:]).reshape(rows.shape[0], -1)
    return {"weight": weight, "scale": scale, "minimum": scale * _F32(-8)}


def _q4_1(rows: Array) -> Parts:
    blocks = split_blocks(rows, 20)
    weight = repack_nibbles(blocks[..., 4:]).reshape(rows.shape[0], -1)
    return {"weight": weight, "scale": halves(blocks, 0), "minimum": halves(blocks, 2)}


def _q8_0(rows: Array) -> Parts:
    blocks = split_blocks(rows, 34)
    weight = blocks[..., 2:].reshape(rows.shape[0], -1).view(np.int8)
    return {"weight": weight, "scale": halves(blocks, 0)}


def _five_bits(low_high: Array, fifth: Array) -> Array:
    """Join 16 bytes of nibbles with the 4 bytes of their fifth bits: 0 to 31. uint8. [..., 32]"""
    nibbles = np.concatenate((low_high & 15, low_high >> 4), axis=-1)
    return nibbles | (np.unpackbits(fifth, axis=-1, bitorder="little") << 4)


def _q5_0(rows: Array) -> Parts:
    blocks = split_blocks(rows, 22)
    weight = _five_bits(blocks[..., 6:], blocks[..., 2:6]).view(np.int8) - np.int8(16)
    return {"weight": weight.reshape(rows.shape[0], -1), "scale": halves(blocks, 0)}


def _q5_1(rows: Array) -> Parts:
    blocks = split_blocks(rows, 24)
    quants = _five_bits(blocks[..., 8:], blocks[..., 4:8]).astype(_F32)
    scale, minimum = halves(blocks, 0), halves(blocks, 2)
    return _round_to_int8(quants * scale[..., None] + minimum[..., None])


def _round_to_int8(groups_RGg: Array) -> Parts:
    """Quantise symmetrically: a group's largest magnitude becomes 127."""
    scale = np.abs(groups_RGg).max(axis=-1) / _F32(127)
    steps = np.where(scale > 0, scale, _F32(1))[..., None]
    # A file's scale may be no number: the group's own scale stays one, so the weights do, too.
    weight = np.nan_to_num(np.rint(groups_RGg / steps)).clip(-127, 127).astype(np.int8)
    return {"weight": weight.reshape(groups_RGg.shape[0], -1), "scale": scale}


def _k_scales(packed: Array) -> tuple[Array, Array]:
    """Unpack the 8 scales and 8 minima, 6 bits each, of Q4_K and Q5_K. float32. [R, B, 8] each

    Bytes 0 to 3 and 4 to 7 hold the first four of each in their low six bits; their top two bits
    belong to the last four, whose low nibbles are in bytes 8 to 11.
    """
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = (first & 63, (third & 15) | ((first >> 6) << 4))
    minima = (second & 63, (third >> 4) | ((second >> 6) << 4))
    return np.concatenate(scales, -1).astype(_F32), np.concatenate(minima, -1).astype(_F32)


def _k_group_scales(blocks: Array) -> tuple[Array, Array]:
    """Return scale and minimum of each group of 32 of Q4_K or Q5_K blocks. [R, B, 8] each"""
    scales, minima = _k_scales(blocks[..., 4:16])
    return scales * halves(blocks, 0)[..., None], minima * -halves(blocks, 2)[..., None]


def _q4_k(rows: Array) -> Parts:
    blocks = split_blocks(rows, 144)
    num_rows = rows.shape[0]
    scale, minimum = _k_group_scales(blocks)
    chunks = blocks[..., 16:].reshape(num_rows, -1, 32)
    weight = repack_nibbles(chunks).reshape(num_rows, -1)
    return {
        "weight": weight,
        "scale": scale.reshape(num_rows, -1),
        "minimum": minimum.reshape(num_rows, -1),
    }


def _q5_k(rows: Array) -> Parts:
    blocks = split_blocks(rows, 176)
    num_rows = rows.shape[0]
    scale, minimum = _k_group_scales(blocks)
    chunks = blocks[..., 48:].reshape(num_rows, -1, 4, 32)
    nibbles = np.stack((chunks & 15, chunks >> 4), axis=3).reshape(num_rows, -1, 8, 32)
    bits = np.unpackbits(blocks[..., 16:48, None], axis=-1, bitorder="little")
    quants = nibbles | (bits.transpose(0, 1, 3, 2) << 4)
    groups = quants.astype(_F32) * scale[..., None] + minimum[..., None]
    return _round_to_int8(groups.reshape(num_rows, -1, 32))


def _q6_k(rows: Array) -> Parts:
    blocks = split_blocks(rows, 210)
    num_rows = rows.shape[0]
    low = blocks[..., :128].reshape(num_rows, -1, 2, 2, 32)
    low = np.stack((low & 15, low >> 4), axis=3)
    high = blocks[..., 128:192].reshape(num_rows, -1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    high = ((high >> shifts) & 3).reshape(num_rows, -1, 2, 2, 2, 32)
    weight = (low | (high << 4)).view(np.int8) - np.int8(32)
    scales = blocks[..., 192:208].view(np.int8).astype(_F32) * halves(blocks, 208)[..., None]
    return {"weight": weight.reshape(num_rows, -1), "scale": scales.reshape(num_rows, -1)}


BLOCKS: dict[int, Block] = {
    0: Block("F32", 1, 4, "float32", DENSE, 0, _dense("<f4")),
    1: Block("F16", 1, 2, "float16", DENSE, 0, _dense("<f2")),
    2: Block("Q4_0", 32, 18, "", INT4_GROUP, 32, _q4_0),
    3: Block("Q4_1", 32, 20, "", INT4_GROUP, 32, _q4_1),
    6: Block("Q5_0", 32, 22, "", INT8_GROUP, 32, _q5_0),
    7: Block("Q5_1", 32, 24, "", INT8_GROUP, 32, _q5_1),
    8: Block("Q8_0", 32, 34, "", INT8_GROUP, 32, _q8_0),
    10: Block("Q2_K", 256, 84, "", INT4_GROUP, 16, q2_k),
    11: Block("Q3_K", 256, 110, "", INT8_GROUP, 16, q3_k),
    12: Block("Q4_K", 256, 144, "", INT4_GROUP, 32, _q4_k),
    13: Block("Q5_K", 256, 176, "", INT8_GROUP, 32, _q5_k),
    14: Block("Q6_K", 256, 210, "", INT8_GROUP, 16, _q6_k),
    16: Block("IQ2_XXS", 256, 66, "", INT8_GROUP, 32, iq2_xxs),
    17: Block("IQ2_XS", 256, 74, "", INT8_GROUP, 16, iq2_xs),
    18: Block("IQ3_XXS", 256, 98, "", INT8_GROUP, 32, iq3_xxs),
    19: Block("IQ1_S", 256, 50, "", INT8_GROUP, 32, iq1_s),
    20: Block("IQ4_NL", 32, 18, "", INT8_GROUP, 32, iq4_nl),
    21: Block("IQ3_S", 256, 110, "", INT8_GROUP, 32, iq3_s),
    22: Block("IQ2_S", 256, 82, "", INT8_GROUP, 16, iq2_s),
    23: Block("IQ4_XS", 256, 136, "", INT8_GROUP, 32, iq4_xs),
    29: Block("IQ1_M", 256, 56, "", INT8_GROUP, 16, iq1_m),
    30: Block("BF16", 1, 2, "bfloat16", DENSE, 0, _dense("<u2")),
    34: Block("TQ1_0", 256, 54, "", INT8_GROUP, 32, tq1_0),
    35: Block("TQ2_0", 256, 66, "", INT8_GROUP, 32, tq2_0),
    39: Block("MXFP4", 32, 17, "", MXFP4, 32, mxfp4),
}
"""By the format's type number."""
