"""Blocks of GGUF tensors in 2 to 4 bits that are no plain integers, to canonical layouts. No torch.

All are exact:

- Q2_K: ``int4-group`` of 16. Q3_K: ``int8-group`` of 16.
- IQ4_NL, IQ4_XS: ``int8-group`` of 32: their 4 bits choose one of 16 whole numbers.
- MXFP4: ``mxfp4``.

Shapes: R rows, B blocks a row, bytes in the last dimension.

Source:
    https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, the block structs.
"""

from __future__ import annotations

import numpy as np

from headstock.checkpoint.files import Array, as_float32
from headstock.checkpoint.gguf_bits import Parts, halves, repack_nibbles, split_blocks

IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
_BYTE = np.arange(256)
IQ4_PAIRS = np.stack((IQ4_VALUES[_BYTE & 15], IQ4_VALUES[_BYTE >> 4]), axis=-2)
"""What the low and the high nibble of a byte choose. [2, 256]"""


def q2_k(rows: Array) -> Parts:
    """84 bytes: 16 scales and minima of 4 bits, 64 bytes of values, the scales of both."""
    blocks = split_blocks(rows, 84)
    num_rows = rows.shape[0]
    values = _two_bits(blocks[..., 16:80])
    packed = values[:, 0::2] | (values[:, 1::2] << 4)
    scales, minima = blocks[..., :16] & 15, blocks[..., :16] >> 4
    scale = scales * halves(blocks, 80)[..., None]
    minimum = minima * -halves(blocks, 82)[..., None]
    return {
        "weight": packed,
        "scale": scale.reshape(num_rows, -1),
        "minimum": minimum.reshape(num_rows, -1),
    }


def q3_k(rows: Array) -> Parts:
    """110 bytes: third bits, 64 bytes of the others, 16 scales of 6 bits, the scale of those."""
    blocks = split_blocks(rows, 110)
    num_rows = rows.shape[0]
    third = (blocks[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    values = _two_bits(blocks[..., 32:96]) | (third.reshape(num_rows, -1) << 2)
    scale = _six_bits(blocks[..., 96:108]) * halves(blocks, 108)[..., None]
    return {"weight": values.view(np.int8) - np.int8(4), "scale": scale.reshape(num_rows, -1)}


def iq4_nl(rows: Array) -> Parts:
    """18 bytes: a scale, and 16 bytes of nibbles."""
    blocks = split_blocks(rows, 18)
    weight = _chosen(blocks[..., 2:]).reshape(rows.shape[0], -1)
    return {"weight": weight, "scale": halves(blocks, 0)}


def iq4_xs(rows: Array) -> Parts:
    """136 bytes: a scale, 8 scales of 6 bits for 32 values each, 16 bytes of nibbles for each."""
    blocks = split_blocks(rows, 136)
    num_rows = rows.shape[0]
    low = blocks[..., 4:8, None] >> np.array([0, 4], np.uint8)
    low = low.reshape(*blocks.shape[:2], 8) & 15
    high = blocks[..., 2:4, None] >> np.array([0, 2, 4, 6], np.uint8)
    high = high.reshape(*blocks.shape[:2], 8) & 3
    scales = (low | (high << 4)).astype(np.float32) - 32
    weight = _chosen(blocks[..., 8:].reshape(*blocks.shape[:2], 8, 16))
    scale = scales * halves(blocks, 0)[..., None]
    return {"weight": weight.reshape(num_rows, -1), "scale": scale.reshape(num_rows, -1)}


def mxfp4(rows: Array) -> Parts:
    """17 bytes: an exponent, and 16 bytes of nibbles."""
    blocks = split_blocks(rows, 17)
    weight = repack_nibbles(blocks[..., 1:]).reshape(rows.shape[0], -1)
    return {"weight": weight, "scale": as_float32("float8_e8m0fnu", blocks[..., 0])}


def _two_bits(packed: Array) -> Array:
    """Return 256 values of each 64 bytes: a byte's pairs of bits are 32 elements apart."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    values = (packed.reshape(*packed.shape[:2], 2, 1, 32) >> shifts) & 3
    return values.reshape(packed.shape[0], -1)


def _six_bits(packed: Array) -> Array:
    """Return 16 scales of 12 bytes: nibbles of the first 8, pairs of bits of the last 4; less 32.

    Low nibbles belong to the first eight scales, high ones to the others; the pairs of a byte to
    scales that are four apart.
    """
    low = np.concatenate((packed[..., :8] & 15, packed[..., :8] >> 4), axis=-1)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = ((packed[..., None, 8:12] >> shifts) & 3).reshape(*packed.shape[:2], 16)
    return (low | (high << 4)).astype(np.float32) - 32


def _chosen(nibbles: Array) -> Array:
    """Return what nibbles choose: those in low ones, then those in high ones. [..., 2 n]"""
    return np.concatenate((IQ4_PAIRS[0][nibbles], IQ4_PAIRS[1][nibbles]), axis=-1)
