"""FP8 checkpoints with scales of matrices, output features or blocks, as `fp8-group`. No torch.

A module has ``weight`` in float8_e4m3fn beside ``weight_scale_inv``, ``weight_scale`` or, in
DeepSeek V4, ``scale``, by which it is multiplied. Modules without such a weight are not quantised.
A tensor of all experts' matrices has scales by the same suffixes, of each expert. DeepSeek V4's
experts have two float4_e2m1 in each int8, and scales that are powers of two: ``mxfp4``.

Source:
    DeepSeek-V3, "Inference weights", https://github.com/deepseek-ai/DeepSeek-V3, for blocks;
    DeepSeek-V4-Flash, ``inference/convert.py``, for experts in 4 bits;
    ``FP8Linear`` and ``FbgemmFp8Linear`` of Hugging Face transformers for the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.four_bit_floats import join_four_bits
from headstock.checkpoint.scaled_matrix import (
    join_scale,
    join_stacked_scale,
    without_activation_scales,
)
from headstock.errors import CheckpointError, UnsupportedError
from headstock.ops.linear import FP8_GROUP

WEIGHT_DTYPE = "float8_e4m3fn"
FOUR_BIT_DTYPE = "int8"
"""Of a tensor that has two values of 4 bits in each byte."""
STACK_DIMENSIONS = 3
"""Of a tensor that has a matrix of each expert."""
OTHER_DTYPES = ("float8_e5m2",)
SUFFIXES = ("_scale_inv", "_scale")
"""What scales add to their weight's name. Both multiply, whatever the first says."""
WEIGHT, SCALE = ".weight", ".scale"
"""Last names of a module's two tensors, where its scale has a name of its own."""


def join_fp8(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with every FP8 weight joined to its scales.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config`` of the model's configuration.

    Raises:
        CheckpointError: A weight has no scales, or scales of another shape.
        UnsupportedError: The weights are in another 8-bit type.
    """
    return join_fp8_weights(index, _block(quantization.get("weight_block_size")))


def join_fp8_weights(
    index: Mapping[str, StoredTensor], block: tuple[int, int] | None
) -> dict[str, StoredTensor]:
    """Likewise, given the rows and columns that share a scale; None: their shape says it."""
    joined: dict[str, StoredTensor] = {}
    for name, tensor in without_activation_scales(index).items():
        if tensor.dtype in OTHER_DTYPES:
            raise UnsupportedError(
                f"{name} is {tensor.dtype}; of FP8 weights only {WEIGHT_DTYPE} can be read.",
                remedy="Use a checkpoint in that type, or the unquantised one with"
                " --quantization fp8.",
            )
        if _is_quantized(tensor):
            names = _scale_names(name)
            found = next((n for n in names if n in index), names[0])
            joined[name] = _join(tensor, index.get(found), found, block)
        elif not _is_scale(name, index):
            joined[name] = tensor
    return joined


def _join(
    weight: StoredTensor, scale: StoredTensor | None, name: str, block: tuple[int, int] | None
) -> StoredTensor:
    """Return a weight with its scale, which is called ``name``."""
    if weight.dtype == FOUR_BIT_DTYPE:
        return join_four_bits(weight, scale, name)
    join = join_stacked_scale if len(weight.shape) == STACK_DIMENSIONS else join_scale
    return join(weight, scale, name, FP8_GROUP, block=block)


def _is_quantized(tensor: StoredTensor) -> bool:
    if tensor.dtype == FOUR_BIT_DTYPE:
        return tensor.name.endswith(WEIGHT)
    return tensor.dtype == WEIGHT_DTYPE


def _scale_names(weight: str) -> list[str]:
    """Return what the scale of a weight may be called."""
    names = [weight + suffix for suffix in SUFFIXES]
    is_module = weight.endswith(WEIGHT)
    return [*names, weight.removesuffix(WEIGHT) + SCALE] if is_module else names


def _is_scale(name: str, index: Mapping[str, StoredTensor]) -> bool:
    """Whether it is the scale of a weight that is there."""
    weights = [name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)]
    if any(weight in index for weight in weights):
        return True
    weight = index.get(name.removesuffix(SCALE) + WEIGHT) if name.endswith(SCALE) else None
    return weight is not None and _is_quantized(weight)


def _block(given: object) -> tuple[int, int] | None:
    """Return ``weight_block_size``; None where there is none."""
    if given is None:
        return None
    sizes = cast("list[Any]", given) if isinstance(given, list) else []
    if len(sizes) != 2 or not all(isinstance(n, int) and n > 0 for n in sizes):
        raise CheckpointError(
            f"quantization_config has weight_block_size {given!r}, not two sizes or null.",
            remedy="Download config.json again.",
        )
    return sizes[0], sizes[1]
