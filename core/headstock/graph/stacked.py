"""Experts that a checkpoint keeps in one tensor a layer, as a matrix for each expert.

Shapes: E experts, D hidden size, F features between an expert's matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headstock.checkpoint.files import StoredTensor
from headstock.errors import CheckpointError
from headstock.ops.linear import DENSE


@dataclass(frozen=True, slots=True)
class Stacked:
    """One tensor of all of a layer's experts.

    Attributes:
        experts: Where the model has its experts, from where the tensor is.
        matrices: Names of the matrices whose outputs follow each other, equally many of each.
        has_inputs_first: Whether it is [E, inputs, outputs], not [E, outputs, inputs].
    """

    experts: str
    matrices: tuple[str, ...]
    has_inputs_first: bool = False


def split_stacked(
    index: Mapping[str, StoredTensor], stacks: Mapping[str, Stacked]
) -> Mapping[str, StoredTensor]:
    """Return ``index`` with a tensor for each matrix of each expert.

    Args:
        index: Tensors as the files have them.
        stacks: What tensors are stacked, by the ends of their names.

    Raises:
        CheckpointError: A stacked tensor has another number of dimensions.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        end = next((end for end in stacks if name.endswith(f".{end}")), None)
        if end is None or (tensor.layout != DENSE and tensor.of_expert is None):
            found[name] = tensor
            continue
        prefix = name.removesuffix(end)
        for piece in _pieces(tensor, prefix, stacks[end]):
            found[piece.name] = piece
    return found


def _pieces(tensor: StoredTensor, prefix: str, stack: Stacked) -> Iterator[StoredTensor]:
    if len(tensor.shape) != 3:
        raise CheckpointError(
            f"{tensor.name} is {list(tensor.shape)}; it has 3 dimensions in checkpoints of its"
            " family.",
            remedy="Check that config.json and the weights belong together.",
        )
    num_experts, *sizes = tensor.shape
    outputs, inputs = reversed(sizes) if stack.has_inputs_first else sizes
    size = outputs // len(stack.matrices)
    num_bytes = tensor.num_bytes // num_experts // len(stack.matrices)
    for expert in range(num_experts):
        whole = _of_expert(tensor, expert, (outputs, inputs), stack)
        for number, matrix in enumerate(stack.matrices):
            yield replace(
                whole,
                name=f"{prefix}{stack.experts}.{expert}.{matrix}.weight",
                shape=(size, inputs),
                num_bytes=num_bytes,
                read=_rows_from(whole, number * size),
            )


def _of_expert(
    tensor: StoredTensor, expert: int, shape: tuple[int, int], stack: Stacked
) -> StoredTensor:
    """Return all of one expert's outputs that are in the tensor."""
    if tensor.of_expert is not None:
        return tensor.of_expert(expert, stack.has_inputs_first)

    def read(begin: int, end: int) -> Mapping[str, Any]:
        whole = tensor.read(expert, expert + 1)["weight"][0]
        outputs = whole.T if stack.has_inputs_first else whole
        return {"weight": np.ascontiguousarray(outputs[begin:end])}

    return replace(tensor, shape=shape, read=read)


def _rows_from(whole: StoredTensor, first: int) -> Callable[[int, int], Mapping[str, Any]]:
    """Return a ``StoredTensor.read`` of the outputs from ``first`` on."""
    return lambda begin, end: whole.read(first + begin, first + end)
