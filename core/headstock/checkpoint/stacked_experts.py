"""Experts that a checkpoint keeps in one tensor a layer, as a matrix for each expert. No torch.

gpt-oss has ``experts.gate_up_proj`` [E, D, 2 F], inputs first, features of gate and up by turns;
``experts.down_proj`` [E, F, D]; and biases beside them. Or the same as MXFP4, outputs first:
``…_blocks`` uint8 [E, 2 F, G, 16] and ``…_scales`` uint8 [E, 2 F, G].

Shapes: E experts, D hidden size, F features between an expert's matrices, G groups of 32 inputs.

Source:
    https://github.com/openai/gpt-oss; ``GptOssExperts`` of Hugging Face transformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from headstock.checkpoint.files import Array, StoredTensor, as_float32
from headstock.errors import CheckpointError
from headstock.ops.linear import MXFP4

MODEL_TYPES = frozenset({"gpt_oss"})
"""Of the configurations whose experts are stacked so."""
GROUP = 32
_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_bias|_blocks|_scales)?")
_MATRICES = {
    "gate_up_proj": {"gate_proj": slice(0, None, 2), "up_proj": slice(1, None, 2)},
    "down_proj": {"down_proj": slice(None)},
}
"""Of each stacked tensor: the matrices in it, and which of its outputs are theirs."""
Read = Callable[[int], Mapping[str, Array]]
"""From an expert's number to the parts of its outputs, in the order of the file."""


def keep_stacked(
    index: Mapping[str, StoredTensor], quantization: Mapping[str, Any]
) -> Mapping[str, StoredTensor]:
    """Return ``index``: :func:`split_experts` reads MXFP4 as well."""
    return index


def split_experts(
    index: Mapping[str, StoredTensor], config: Mapping[str, Any]
) -> Mapping[str, StoredTensor]:
    """Return ``index`` with a tensor for each matrix and bias of each expert.

    Args:
        index: Tensors as the files have them.
        config: Of the model: others than :data:`MODEL_TYPES` keep theirs.

    Raises:
        CheckpointError: A stacked tensor has another number of dimensions, or its scales differ.
    """
    if config.get("model_type") not in MODEL_TYPES:
        return index
    split: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        match = _STACKED.fullmatch(name)
        if match is None:
            split[name] = tensor
        elif match[3] != "_scales":
            for piece in _pieces(tensor, match, index):
                split[piece.name] = piece
    return split


def _pieces(
    tensor: StoredTensor, match: re.Match[str], index: Mapping[str, StoredTensor]
) -> list[StoredTensor]:
    prefix, name, form = match[1], match[2], match[3]
    if form == "_blocks":
        return _quantized(tensor, f"{prefix}.{name}", index)
    kind = "bias" if form else "weight"
    _check(tensor, 2 if form else 3)
    num_experts, size = tensor.shape[0], tensor.shape[-1]

    def read(expert: int) -> Mapping[str, Array]:
        outputs_last = tensor.read(expert, expert + 1)["weight"][0]
        return {"weight": outputs_last.T}

    found: list[StoredTensor] = []
    for matrix, rows in _MATRICES[name].items():
        shape = (len(range(*rows.indices(size))), *tensor.shape[1:-1])
        one = replace(tensor, shape=shape, num_bytes=_share(tensor.num_bytes, num_experts, name))
        for expert in range(num_experts):
            whole = f"{prefix}.{expert}.{matrix}.{kind}"
            found.append(replace(one, name=whole, read=_rows_of(read, expert, rows)))
    return found


def _quantized(
    blocks: StoredTensor, name: str, index: Mapping[str, StoredTensor]
) -> list[StoredTensor]:
    scales = index.get(f"{name}_scales")
    _check(blocks, 4)
    if scales is None or scales.shape != blocks.shape[:3] or blocks.shape[3] != GROUP // 2:
        has = "is not there" if scales is None else f"is {list(scales.shape)}"
        raise CheckpointError(
            f"{name}_scales {has}, and {blocks.name} {list(blocks.shape)}: a scale is needed"
            f" for every {GROUP // 2} bytes.",
            remedy="Check that the files belong together, and download them again.",
        )
    num_experts, size, num_groups, _ = blocks.shape

    def read(expert: int) -> Mapping[str, Array]:
        bytes_OGb = blocks.read(expert, expert + 1)["weight"][0]
        scale_OG = as_float32("float8_e8m0fnu", scales.read(expert, expert + 1)["weight"][0])
        return {"weight": bytes_OGb.reshape(size, -1), "scale": scale_OG}

    prefix, _, stacked = name.rpartition(".")
    num_bytes = _share(blocks.num_bytes + scales.num_bytes, num_experts, stacked)
    found: list[StoredTensor] = []
    for matrix, rows in _MATRICES[stacked].items():
        shape = (len(range(*rows.indices(size))), num_groups * GROUP)
        found += [
            StoredTensor(
                name=f"{prefix}.{expert}.{matrix}.weight",
                shape=shape,
                dtype="",
                layout=MXFP4,
                group_size=GROUP,
                num_bytes=num_bytes,
                read=_rows_of(read, expert, rows),
            )
            for expert in range(num_experts)
        ]
    return found


def _rows_of(read: Read, expert: int, rows: slice) -> Callable[[int, int], Mapping[str, Array]]:
    """Return a ``StoredTensor.read`` of some outputs of one expert."""
    return lambda begin, end: {
        name: np.ascontiguousarray(part[rows][begin:end]) for name, part in read(expert).items()
    }


def _share(num_bytes: int, num_experts: int, name: str) -> int:
    return num_bytes // num_experts // len(_MATRICES[name])


def _check(tensor: StoredTensor, num_dimensions: int) -> None:
    if len(tensor.shape) != num_dimensions:
        raise CheckpointError(
            f"{tensor.name} is {list(tensor.shape)}; it has {num_dimensions} dimensions in"
            " checkpoints of its family.",
            remedy="Check that config.json and the weights belong together.",
        )
