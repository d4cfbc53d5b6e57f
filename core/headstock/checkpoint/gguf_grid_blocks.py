"""Blocks of GGUF tensors in 1 to 3 bits, to ``int8-group``, exactly. No torch.

Of the IQ types an index chooses a point of a grid: 8 elements, or 4, at once. Signs have bits of
their own, seven for eight elements where the last follows from their parity. Of IQ1 the points are
shifted by an eighth, so that what is kept is eight times the values. Those of TQ are -1, 0 or 1.

Shapes: R rows, B blocks a row, bytes in the last dimension.

Source:
    https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h, the block structs.
"""

from __future__ import annotations

import numpy as np

from headstock.checkpoint.files import Array
from headstock.checkpoint.gguf_bits import Parts, halves, split_blocks
from headstock.checkpoint.gguf_grids import IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS

_F32 = np.float32
_SEVEN = np.arange(128, dtype=np.uint8)
EVEN_SIGNS = _SEVEN | ((np.unpackbits(_SEVEN[:, None], axis=1).sum(axis=1) & 1) << 7).astype(
    np.uint8
)
"""Seven signs and the eighth, which makes those that are set an even number. [128]"""
SEVENS = np.array([0, 7, 14, 21], np.uint32)
"""Where a word has its four times seven signs."""


def iq2_xxs(rows: Array) -> Parts:
    """66 bytes: a scale; for 32 values each 4 indexes, a word of signs and a scale of 4 bits."""
    blocks = split_blocks(rows, 66)
    words = _numbers(blocks, 2, 66, "<u4").reshape(*blocks.shape[:2], 8, 2)
    indexes = blocks[..., 2:].reshape(*blocks.shape[:2], 8, 8)[..., :4]
    signs = EVEN_SIGNS[(words[..., 1, None] >> SEVENS) & 127]
    scale = halves(blocks, 0)[..., None] * (_F32(0.5) + (words[..., 1] >> 28).astype(_F32))
    return _parts(_signed(IQ2_XXS.points[indexes], signs), scale * _F32(0.25))


def iq2_xs(rows: Array) -> Parts:
    """74 bytes: a scale, 32 indexes of 9 bits with 7 signs, 16 scales of 4 bits."""
    blocks = split_blocks(rows, 74)
    words = _numbers(blocks, 2, 66, "<u2")
    weight = _signed(IQ2_XS.points[words & 511], EVEN_SIGNS[words >> 9])
    return _parts(weight, _quarter_scales(blocks, 66))


def iq2_s(rows: Array) -> Parts:
    """82 bytes: a scale, 32 low bytes of indexes, 32 of signs, 8 of high bits, 16 scales."""
    blocks = split_blocks(rows, 82)
    high = _bits(blocks[..., 66:74], 2)
    indexes = blocks[..., 2:34].astype(np.uint16) | (high.astype(np.uint16) << 8)
    weight = _signed(IQ2_S.points[indexes], blocks[..., 34:66])
    return _parts(weight, _quarter_scales(blocks, 74))


def iq3_xxs(rows: Array) -> Parts:
    """98 bytes: a scale, 64 indexes of 4 values, 8 words of signs and a scale of 4 bits."""
    blocks = split_blocks(rows, 98)
    words = _numbers(blocks, 66, 98, "<u4")
    signs = EVEN_SIGNS[(words[..., None] >> SEVENS) & 127]
    points = IQ3_XXS.points[blocks[..., 2:66]].reshape(*signs.shape, 8)
    scale = halves(blocks, 0)[..., None] * (_F32(0.5) + (words >> 28).astype(_F32))
    return _parts(_signed(points, signs), scale * _F32(0.5))


def iq3_s(rows: Array) -> Parts:
    """110 bytes: a scale, 64 low bytes of indexes, 8 of high bits, 32 of signs, 8 scales."""
    blocks = split_blocks(rows, 110)
    high = _bits(blocks[..., 66:74], 1)
    indexes = blocks[..., 2:66].astype(np.uint16) | (high.astype(np.uint16) << 8)
    points = IQ3_S.points[indexes].reshape(*blocks.shape[:2], 32, 8)
    steps = 1 + 2 * _bits(blocks[..., 106:110], 4).astype(_F32)
    return _parts(_signed(points, blocks[..., 74:106]), halves(blocks, 0)[..., None] * steps)


def iq1_s(rows: Array) -> Parts:
    """50 bytes: a scale, 32 low bytes of indexes, 8 words of high bits, a scale and a shift."""
    blocks = split_blocks(rows, 50)
    words = _numbers(blocks, 34, 50, "<u2")
    high = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16)) & 7
    indexes = blocks[..., 2:34].astype(np.uint16) | (high << 8).reshape(*blocks.shape[:2], 32)
    shifts = np.where(words & 0x8000, np.int8(-1), np.int8(1))[..., None, None]
    points = IQ1.points[indexes].reshape(*words.shape, 4, 8)
    steps = 2 * ((words >> 12) & 7).astype(_F32) + 1
    scale = halves(blocks, 0)[..., None] * steps * _F32(0.125)
    return _parts(points * np.int8(8) + shifts, scale)


def iq1_m(rows: Array) -> Parts:
    """56 bytes: 32 low bytes of indexes, 16 of high bits and shifts, 16 scales and the scale.

    That one's four nibbles are the highest of the words that have the scales, of 3 bits each.
    """
    blocks = split_blocks(rows, 56)
    words = _numbers(blocks, 48, 56, "<u2")
    nibbles = (words >> 12) << np.array([0, 4, 8, 12], np.uint16)
    scale = np.bitwise_or.reduce(nibbles, axis=-1).view(np.float16).astype(_F32)
    three = (words[..., None] >> np.array([0, 3, 6, 9], np.uint16)) & 7
    steps = 2 * three.reshape(*blocks.shape[:2], 16).astype(_F32) + 1
    high = _bits(blocks[..., 32:48], 4)
    indexes = blocks[..., :32].astype(np.uint16) | ((high & 7).astype(np.uint16) << 8)
    shifts = np.where(high & 8, np.int8(-1), np.int8(1))[..., None]
    weight = IQ1.points[indexes] * np.int8(8) + shifts
    return _parts(weight, scale[..., None] * steps * _F32(0.125))


def tq1_0(rows: Array) -> Parts:
    """54 bytes: 52 of five values each, of which the last four bytes have four; a scale.

    A byte is a fraction in base 3: its digits are what multiplying by 3 carries out.
    """
    blocks = split_blocks(rows, 54)
    digits = [
        _digits(blocks[..., 0:32], 5),
        _digits(blocks[..., 32:48], 5),
        _digits(blocks[..., 48:52], 4),
    ]
    return _of_one_scale(np.concatenate(digits, axis=-1), halves(blocks, 52))


def tq2_0(rows: Array) -> Parts:
    """66 bytes: 64 of four values each, which are 32 elements apart; a scale."""
    blocks = split_blocks(rows, 66)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    values = (blocks[..., :64].reshape(*blocks.shape[:2], 2, 1, 32) >> shifts) & 3
    return _of_one_scale(values.reshape(*blocks.shape[:2], 256), halves(blocks, 64))


def _digits(packed: Array, count: int) -> Array:
    """Return the digits of n bytes, the first digits of all in front. [..., count * n]"""
    powers = (3 ** np.arange(count)).astype(np.uint8)[:, None]
    fractions = (packed[..., None, :] * powers).astype(np.uint8)
    digits = (fractions.astype(np.uint16) * 3) >> 8
    return digits.astype(np.uint8).reshape(*packed.shape[:2], -1)


def _of_one_scale(values: Array, scale: Array) -> Parts:
    """Return values from 0, which stands for -1, whose blocks of 256 have one scale each."""
    return _parts(values.view(np.int8) - np.int8(1), np.repeat(scale[..., None], 8, axis=-1))


def _parts(weight: Array, scale: Array) -> Parts:
    num_rows = weight.shape[0]
    return {"weight": weight.reshape(num_rows, -1), "scale": scale.reshape(num_rows, -1)}


def _numbers(blocks: Array, begin: int, end: int, kind: str) -> Array:
    """Read bytes [begin, end) of each block as integers."""
    return np.ascontiguousarray(blocks[..., begin:end]).view(kind)


def _bits(packed: Array, width: int) -> Array:
    """Return what n bytes hold in ``width`` bits each, the lowest first. [R, B, n * 8 / width]"""
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    found = (packed[..., None] >> shifts) & np.uint8((1 << width) - 1)
    return found.reshape(*packed.shape[:2], -1)


def _signed(points: Array, signs: Array) -> Array:
    """Return points with the signs that bytes have: a bit that is set makes its element negative.

    Args:
        points: int8. [..., 8]
        signs: The lowest bit is of the first. uint8. [...]
    """
    bits = np.unpackbits(signs[..., None], axis=-1, bitorder="little")
    return np.where(bits, -points, points)


def _quarter_scales(blocks: Array, begin: int) -> Array:
    """Return 16 scales of 4 bits at ``begin``, each half more than that, times a quarter."""
    steps = _F32(0.5) + _bits(blocks[..., begin : begin + 8], 4).astype(_F32)
    return halves(blocks, 0)[..., None] * steps * _F32(0.25)
