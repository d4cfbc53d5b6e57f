"""AWQ checkpoints as `int4-group` tensors. No torch.

A module has ``qweight`` int32 [I, O / 8], ``qzeros`` int32 [G, O / 8] and ``scales`` [G, O]; what
it stands for is scale * (q - zero). A word holds eight neighbouring output features.

Shapes: O output features, I input features, R of the output features, G groups along I, W words.

Source:
    AutoAWQ, version "gemm", https://github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor
from headstock.checkpoint.packed_ints import (
    PackedMatrix,
    Parts,
    check_groups,
    columns_as_float32,
    config_integer,
    join_modules,
    unpack_columns,
    whole,
)
from headstock.errors import UnsupportedError

PARTS = ("qweight", "qzeros", "scales")
PER_WORD = 8
OLD_KEYS = {"w_bit": "bits", "q_group_size": "group_size"}
"""What AutoAWQ called two settings at first."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output feature that each nibble of a word belongs to, the lowest nibble first."""


def join_awq(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with those of each quantised module joined to one weight.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config`` of the model's configuration.

    Raises:
        CheckpointError: A module lacks a tensor, or has one of another shape.
        UnsupportedError: The weights are packed for another kernel, or not in 4 bits.
    """
    quantization = {OLD_KEYS.get(key, key): value for key, value in quantization.items()}
    version, bits = str(quantization.get("version", "gemm")).lower(), quantization.get("bits", 4)
    if version != "gemm" or bits != 4:
        raise UnsupportedError(
            f"The AWQ checkpoint is version {version!r} with {bits} bits; only 'gemm' with 4"
            " can be read.",
            remedy="Use a checkpoint of that version, or the unquantised one.",
        )
    group_size = config_integer(quantization, "group_size", 128)
    return join_modules(index, PARTS, partial(_join, group_size))


def _join(group_size: int, parts: Parts) -> PackedMatrix:
    qweight = parts.matrix("qweight")
    in_features, num_words = qweight.shape
    group_size = check_groups(parts.module, in_features, group_size)
    num_groups, out_features = in_features // group_size, num_words * PER_WORD
    qzeros = parts.take("qzeros", (num_groups, num_words))
    scales = parts.take("scales", (num_groups, out_features))
    return PackedMatrix(
        out_features=out_features,
        in_features=in_features,
        bits=4,
        group_size=group_size,
        weight=lambda begin, end: _rows(whole(qweight), begin, end),
        scale=partial(columns_as_float32, scales),
        zero=lambda begin, end: unpack_columns(whole(qzeros), 4, begin, end, ORDER),
    )


def _rows(words_IW: Array, begin: int, end: int) -> Array:
    """Return the output features [begin, end) in canonical bytes. uint8 [R, I / 2]"""
    first, last = begin // PER_WORD, -(-end // PER_WORD)
    num_words = last - first
    bytes_IWb = np.ascontiguousarray(words_IW[:, first:last]).view(np.uint8)
    bytes_IWb = bytes_IWb.reshape(-1, num_words, 4)
    even, odd = bytes_IWb[0::2], bytes_IWb[1::2]  # input features that will share a byte
    rows = np.empty((num_words, PER_WORD, len(even)), np.uint8)
    rows[:, ORDER[0::2]] = ((even & 15) | (odd << 4)).transpose(1, 2, 0)
    rows[:, ORDER[1::2]] = ((even >> 4) | (odd & 240)).transpose(1, 2, 0)
    at = first * PER_WORD
    return rows.reshape(num_words * PER_WORD, -1)[begin - at : end - at]
