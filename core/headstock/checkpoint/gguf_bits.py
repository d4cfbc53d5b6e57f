"""What the converters of GGUF blocks share. No torch.

Shapes: R rows, B blocks a row, bytes in the last dimension.
"""

from __future__ import annotations

import numpy as np

from headstock.checkpoint.files import Array

Parts = dict[str, Array]


def split_blocks(rows: Array, num_bytes: int) -> Array:
    """Return rows of bytes in blocks. [R, B, num_bytes]"""
    return rows.reshape(rows.shape[0], -1, num_bytes)


def halves(blocks_RBn: Array, begin: int) -> Array:
    """Read the float16 at byte ``begin`` of each block as float32. [R, B]"""
    return blocks_RBn[..., begin : begin + 2].view(np.float16)[..., 0].astype(np.float32)


def repack_nibbles(low_high: Array) -> Array:
    """Turn nibbles (element i low, element i + n high in byte i) to neighbours in one byte.

    Two bytes are worked on at a time, as one little-endian word: its low nibbles are elements
    2 j and 2 j + 1, and so are its high ones of the second half.

    Args:
        low_high: n bytes, n even. uint8. [..., n]

    Returns:
        The first n elements in n / 2 bytes, then the others. uint8. [..., n]
    """
    words = low_high.view("<u2")
    half = words.shape[-1]
    packed = np.empty(low_high.shape, np.uint8)
    part = words & 0x0F0F
    part |= part >> 4  # the low byte of each word is what is wanted; storing it drops the other
    packed[..., :half] = part
    np.right_shift(words, 4, out=part)
    part &= 0x0F0F
    part |= part >> 4
    packed[..., half:] = part
    return packed
