"""Checkpoints of Model Optimizer, FP8 and NVFP4, in canonical layouts. No torch.

An FP8 module has ``weight`` in float8_e4m3fn and ``weight_scale``, one number or one for each
output feature. An NVFP4 module has ``weight`` uint8 [O, I / 2]; ``weight_scale`` float8_e4m3fn
[O, I / 16]; and ``weight_scale_2``, one number: it stands for the product of both and the value.
The tensors say which a module has, so that both may be in one checkpoint.

Shapes: O output features, I input features.

Source:
    Model Optimizer, modelopt/torch/export, "unified_export_hf".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from headstock.checkpoint.files import StoredTensor
from headstock.checkpoint.four_bit_floats import join_nvfp4
from headstock.checkpoint.fp8 import join_fp8_weights
from headstock.checkpoint.packed_ints import Parts
from headstock.errors import UnsupportedError

ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4")
MIXED = "MIXED_PRECISION"
"""An algorithm for each of ``quantized_layers``."""
VALUES, SCALE, SCALE_OF_ALL = "weight", "weight_scale", "weight_scale_2"
SMOOTHING = "pre_quant_scale"
"""Multiplies activations, which is not computed."""


def join_modelopt(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors of ``index`` with those of each quantised module joined to one weight.

    Args:
        index: Tensors as the files have them.
        quantization: ``quantization_config``, or what ``hf_quant_config.json`` holds.

    Raises:
        CheckpointError: A module lacks a tensor, or has one of another shape.
        UnsupportedError: The algorithm is another, or activations are scaled before a product.
    """
    inside = quantization.get("quantization")
    settings = cast("Mapping[str, Any]", inside) if isinstance(inside, dict) else quantization
    _check_algorithm(settings)
    joined: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        module, _, part = name.rpartition(".")
        if part == SMOOTHING:
            raise UnsupportedError(
                f"{name} scales activations before their product, which is not computed.",
                remedy=f"Use a checkpoint in {', '.join(ALGORITHMS)}, or the unquantised one.",
            )
        if part == VALUES and _is_nvfp4(module, index):
            names = (VALUES, SCALE, SCALE_OF_ALL)
            found = {n: index[f"{module}.{n}"] for n in names if f"{module}.{n}" in index}
            joined[name] = join_nvfp4(Parts(module, found), VALUES, SCALE_OF_ALL, divides=False)
        elif part not in (SCALE, SCALE_OF_ALL) or not _is_nvfp4(module, index):
            joined[name] = tensor
    return join_fp8_weights(joined, None)


def _is_nvfp4(module: str, index: Mapping[str, StoredTensor]) -> bool:
    weight = index.get(f"{module}.{VALUES}")
    return weight is not None and weight.dtype == "uint8"


def _check_algorithm(settings: Mapping[str, Any]) -> None:
    """Refuse a checkpoint, or a layer of it, in an algorithm that is not read."""
    asked: dict[str, Any] = {"quant_algo": settings.get("quant_algo")}
    if asked["quant_algo"] == MIXED:
        layers = settings.get("quantized_layers")
        by_layer = cast("dict[str, Any]", layers) if isinstance(layers, dict) else {}
        asked = {
            f"quantized_layers {name}": cast("dict[str, Any]", layer).get("quant_algo")
            if isinstance(layer, dict)
            else layer
            for name, layer in by_layer.items()
        }
    for key, algorithm in asked.items():
        if algorithm not in ALGORITHMS:
            raise UnsupportedError(
                f"The ModelOpt checkpoint has {key} {algorithm!r}, which cannot be read.",
                remedy=f"Use a checkpoint in {', '.join(ALGORITHMS)}, or the unquantised one.",
            )
