"""GPTQ checkpoints as `int4-group` or `int8-group` tensors. No torch.

A module has ``qweight`` int32 [I / n, O], n = 32 / bits neighbouring input features to a word;
``qzeros`` int32 [G, O / n]; ``scales`` [G, O]; and mostly ``g_idx`` int32 [I], the group of each
input feature. What it stands for is scale * (q - zero). Zeros are stored less 1, but for the format
``gptq_v2``. With activation ordering (``desc_act``) ``g_idx`` scatters the input features over the
groups; such a matrix is ``dense``, or in its bits where activations are put in order. One of 8 bits
whose zeros are not all 128 is ``dense``.

Shapes: O output features, I input features, R of the output features, G groups along I, W words.

Source:
    GPTQModel, https://github.com/ModelCloud/GPTQModel, gptqmodel/nn_modules/qlinear/__init__.py;
    AutoGPTQ's files are its ``checkpoint_format`` "gptq".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor
from headstock.checkpoint.packed_ints import (
    LAYOUTS,
    WORD_BITS,
    PackedMatrix,
    Parts,
    as_signed,
    check_groups,
    columns_as_float32,
    config_integer,
    join_modules,
    scattered_groups,
    unpack_columns,
    whole,
)
from headstock.errors import UnsupportedError

PARTS = ("qweight", "qzeros", "scales", "g_idx")
ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What to add to stored zeros, by ``checkpoint_format``."""


def join_gptq(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with those of each quantised module joined to one weight.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config`` of the model's configuration.

    Raises:
        CheckpointError: A module lacks a tensor, or has one of another shape.
        UnsupportedError: The bits or the format are others.
    """
    form = quantization.get("checkpoint_format") or "gptq"
    bits = config_integer(quantization, "bits")
    if form not in ZERO_OFFSETS or bits not in LAYOUTS:
        raise UnsupportedError(
            f"The GPTQ checkpoint has checkpoint_format {form!r} and {bits} bits; 'gptq' and"
            " 'gptq_v2' with 4 or 8 can be read.",
            remedy="Use a checkpoint of such a form, or the unquantised one.",
        )
    group_size = config_integer(quantization, "group_size")
    joined = join_modules(index, PARTS, partial(_join, bits, group_size, ZERO_OFFSETS[form]))
    return {n: tensor for n, tensor in joined.items() if not _is_idle_bias(n, tensor, index)}


def _is_idle_bias(name: str, tensor: StoredTensor, index: Mapping[str, StoredTensor]) -> bool:
    """Whether it adds zeros: AutoGPTQ gave every module a bias, also where the model has none."""
    module, _, part = name.rpartition(".")
    return part == "bias" and f"{module}.{PARTS[0]}" in index and not whole(tensor).any()


def _join(bits: int, group_size: int, zero_offset: int, parts: Parts) -> PackedMatrix:
    qweight, per_word = parts.matrix("qweight"), WORD_BITS // bits
    in_features, out_features = qweight.shape[0] * per_word, qweight.shape[1]
    group_size = check_groups(parts.module, in_features, group_size)
    num_groups = in_features // group_size
    qzeros = parts.take("qzeros", (num_groups, -(-out_features // per_word)))
    scales = parts.take("scales", (num_groups, out_features))

    def zero(begin: int, end: int) -> Array:
        return unpack_columns(whole(qzeros), bits, begin, end).astype(np.int16) + zero_offset

    return PackedMatrix(
        out_features=out_features,
        in_features=in_features,
        bits=bits,
        group_size=group_size,
        weight=lambda begin, end: _rows(whole(qweight), bits, begin, end),
        scale=partial(columns_as_float32, scales),
        zero=zero,
        group_of_I=scattered_groups(parts, "g_idx", in_features, group_size),
    )


def _rows(words_WO: Array, bits: int, begin: int, end: int) -> Array:
    """Return output features [begin, end): a word's bytes are canonical as they stand."""
    rows = np.ascontiguousarray(words_WO[:, begin:end].T).view(np.uint8)
    return rows if bits == 4 else as_signed(rows)
