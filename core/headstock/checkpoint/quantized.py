"""Which reader turns a folder's quantised tensors into canonical layouts. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from headstock.checkpoint import awq, compressed_tensors, fp8_blocks, gptq, stacked_experts
from headstock.checkpoint.files import StoredTensor
from headstock.errors import UnsupportedError

Index = Mapping[str, StoredTensor]
Join = Callable[[Index, Mapping[str, Any]], Index]

METHODS: dict[str, Join] = {
    awq.METHOD: awq.join_awq,
    compressed_tensors.METHOD: compressed_tensors.join_compressed,
    fp8_blocks.METHOD: fp8_blocks.join_scales,
    gptq.METHOD: gptq.join_gptq,
    stacked_experts.METHOD: stacked_experts.keep_stacked,
}
"""Readers by ``quant_method``."""


def find_reader(path: Path, config: Mapping[str, Any]) -> Callable[[Index], Index]:
    """Return what joins the quantised tensors of the folder ``path``; nothing for dense ones.

    Args:
        path: The folder, for errors.
        config: The model's configuration.

    Raises:
        UnsupportedError: The weights are quantised by a method that we cannot read.
    """
    given = config.get("quantization_config")
    if not given:
        return lambda index: index
    quantization = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    method = quantization.get("quant_method")
    if method not in METHODS:
        raise UnsupportedError(
            f"{path} is quantised by {method or 'an unnamed method'}, which cannot be read yet.",
            remedy=f"Use a checkpoint in {', '.join(METHODS)}, a GGUF file, or the model's"
            " unquantised folder, with --quantization int8 or int4 if memory is short.",
        )
    return lambda index: METHODS[method](index, quantization)
