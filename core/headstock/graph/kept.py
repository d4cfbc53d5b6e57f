"""What decides how a model keeps the tensors of its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.loader import expected_leaves

Kept = tuple[tuple[int, ...], str, int, bytes]
"""Of one tensor: its shape, its layout, its group size, and the order of its input features."""


def kept_of(model: Model, index: Mapping[str, StoredTensor]) -> dict[str, Kept]:
    """Return what decides how the tensors of ``model`` are kept, by name."""
    expected = expected_leaves(model)
    return {name: _kept(tensor) for name, tensor in index.items() if name in expected}


def _kept(tensor: StoredTensor) -> Kept:
    order = b"" if tensor.ordered is None else tensor.ordered.order_I.tobytes()
    return tensor.shape, tensor.layout, tensor.group_size, order
