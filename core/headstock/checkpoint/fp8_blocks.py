"""FP8 checkpoints with a scale for every block of a matrix, as `fp8-group` tensors. No torch.

Source:
    DeepSeek-V3, "Inference weights", https://github.com/deepseek-ai/DeepSeek-V3; Qwen3-FP8 models
    have the same form: ``name.weight`` in float8_e4m3fn beside ``name.weight_scale_inv``, by which
    it is multiplied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, as_float32
from headstock.errors import CheckpointError, UnsupportedError
from headstock.ops.linear import FP8_GROUP

SCALE_SUFFIX = "_scale_inv"
WEIGHT_DTYPE = "float8_e4m3fn"


def join_scales(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with every FP8 weight joined to its scales.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config`` of the model's configuration.

    Raises:
        CheckpointError: A weight has no scales, or scales of another shape.
        UnsupportedError: The scales are not of blocks.
    """
    given = quantization.get("weight_block_size")
    block = cast("list[Any]", given) if isinstance(given, list) else None
    if block is None or len(block) != 2:
        raise UnsupportedError(
            f"weight_block_size is {given!r}: FP8 weights with one scale for a whole matrix cannot"
            " be read yet.",
            remedy="Use a checkpoint with scales of blocks, or the unquantised one with"
            " --quantization fp8.",
        )
    rows, columns = int(block[0]), int(block[1])
    joined: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        if tensor.dtype == WEIGHT_DTYPE:
            joined[name] = _join(tensor, index.get(name + SCALE_SUFFIX), rows, columns)
        elif not name.endswith(SCALE_SUFFIX):
            joined[name] = tensor
    return joined


def _join(
    weight: StoredTensor, scale: StoredTensor | None, rows: int, columns: int
) -> StoredTensor:
    due = tuple(-(-size // unit) for size, unit in zip(weight.shape, (rows, columns), strict=True))
    if scale is None or scale.shape != due:
        has = "is not there" if scale is None else f"is {list(scale.shape)}"
        raise CheckpointError(
            f"{weight.name}{SCALE_SUFFIX} {has}; blocks of {rows} x {columns} make it {list(due)}.",
            remedy="Check that the files belong together, and download them again.",
        )
    # A last block that is not full is no group of its own size: smaller groups divide the row, and
    # several have the scale of one block.
    group_size = math.gcd(weight.shape[1], columns)
    block_of_group = np.arange(0, weight.shape[1], group_size) // columns
    scales = as_float32(scale.dtype, scale.read_all()["weight"])

    def read(begin: int, end: int) -> dict[str, Array]:
        blocks = np.arange(begin, end) // rows
        parts = scales[blocks][:, block_of_group]
        return {"weight": weight.read(begin, end)["weight"], "scale": parts}

    return replace(
        weight,
        layout=FP8_GROUP,
        group_size=group_size,
        num_bytes=weight.num_bytes + scale.num_bytes,
        read=read,
    )
