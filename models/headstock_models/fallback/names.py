"""A checkpoint's tensors by the names, and in the pieces, that transformers' classes have.

Shapes: E experts, D hidden size, F features between an expert's matrices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from headstock.checkpoint.files import StoredTensor

_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")
"""Experts in one tensor: gate and up below each other, [E, 2 F, D], or down, [E, D, F]."""


def named_as_modules(
    index: Mapping[str, StoredTensor], model_type: str, prefix: str
) -> Mapping[str, StoredTensor]:
    """Return ``index`` by the names of modules, with a tensor for each expert's matrices.

    Args:
        index: Tensors as the files have them.
        model_type: Of the configuration: transformers lists old names by it.
        prefix: Of the decoder's modules, which checkpoints of a decoder alone lack.
    """
    rename = _renaming(model_type)
    has_prefix = any(name.startswith(f"{prefix}.") for name in index)
    found: dict[str, StoredTensor] = {}
    for old, tensor in index.items():
        name = rename(old if has_prefix else f"{prefix}.{old}")
        match = _STACKED.fullmatch(name)
        if match is None:
            found[name] = replace(tensor, name=name)
        else:
            found |= _pieces(tensor, match[1], match[2])
    return found


def _renaming(model_type: str) -> Callable[[str], str]:
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    rules: Any = get_checkpoint_conversion_mapping(model_type) or ()
    plain = [rule for rule in rules if not hasattr(rule, "operations")]

    def rename(name: str) -> str:
        for rule in plain:
            name, _ = rule.rename_source_key(name)
        return name

    return rename


def _pieces(tensor: StoredTensor, prefix: str, name: str) -> dict[str, StoredTensor]:
    num_experts, rows = tensor.shape[:2]
    places = {"down_proj": (0, rows)}
    if name == "gate_up_proj":
        places = {"gate_proj": (0, rows // 2), "up_proj": (rows // 2, rows)}
    found: dict[str, StoredTensor] = {}
    for matrix, (first, last) in places.items():
        for expert in range(num_experts):
            whole = f"{prefix}.{expert}.{matrix}.weight"
            found[whole] = replace(
                tensor,
                name=whole,
                shape=(last - first, *tensor.shape[2:]),
                num_bytes=tensor.num_bytes // num_experts // len(places),
                read=_rows_of(tensor, expert, first),
            )
    return found


def _rows_of(
    tensor: StoredTensor, expert: int, first: int
) -> Callable[[int, int], Mapping[str, Any]]:
    """Return a ``StoredTensor.read`` of one expert's rows from ``first`` on."""

    def read(begin: int, end: int) -> Mapping[str, Any]:
        parts = tensor.read(expert, expert + 1)
        return {name: part[0][first + begin : first + end] for name, part in parts.items()}

    return read
