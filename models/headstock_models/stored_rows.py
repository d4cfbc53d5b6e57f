"""Tensors of checkpoints by other names, with rows taken apart, or in another order."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from headstock.checkpoint.files import StoredTensor


def renamed(
    index: Mapping[str, StoredTensor], names: Iterable[tuple[str, str]]
) -> dict[str, StoredTensor]:
    """Return a checkpoint's tensors by the names that a model's leaves have.

    Args:
        index: The tensors by their own names.
        names: Pattern, and what replaces it; each is applied to what the one before has made.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in index.items():
        new = name
        for pattern, ours in names:
            new = re.sub(pattern, ours, new)
        found[new] = tensor if tensor.name == new else replace(tensor, name=new)
    return found


def take_rows(tensor: StoredTensor, name: str, order: np.ndarray) -> StoredTensor:
    """Return some rows of a tensor as one of their own.

    Args:
        tensor: Of any shape.
        name: Of the new one.
        order: Its rows, as those of ``tensor``. int64. [rows]
    """
    share = len(order) / tensor.shape[0]
    return replace(
        tensor,
        name=name,
        shape=(len(order), *tensor.shape[1:]),
        num_bytes=int(tensor.num_bytes * share),
        read=_reader(tensor, order),
    )


def _reader(tensor: StoredTensor, order: np.ndarray) -> Callable[[int, int], Mapping[str, Any]]:
    def read(begin: int, end: int) -> Mapping[str, Any]:
        return {part: rows[order[begin:end]] for part, rows in tensor.read_all().items()}

    return read
