"""Tensors of checkpoints whose rows a model takes apart, or puts into an order of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from headstock.checkpoint.files import StoredTensor


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
