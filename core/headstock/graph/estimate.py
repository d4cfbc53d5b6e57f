"""How much memory a model's weights will take, before a byte of them is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headstock.checkpoint.files import StoredTensor
from headstock.graph.build import Model
from headstock.graph.context import Context
from headstock.graph.linear import Linear
from headstock.graph.loader import expected_leaves
from headstock.graph.module import Leaf, find_layers
from headstock.ops.canonical import count_bytes
from headstock.quantization.plan import Layout, Role, choose_layout


def estimate_weight_bytes(model: Model, index: Mapping[str, StoredTensor], ctx: Context) -> int:
    """Return the bytes of the weights on one rank, in their canonical layouts, and of adapters.

    A provider's own packing may take a little more.

    Args:
        model: Built, not loaded.
        index: Of the checkpoint; {} for random weights, which are dense.
        ctx: What the model was built with.
    """
    total = 0
    for name, (layer, leaf) in expected_leaves(model).items():
        stored = index.get(name)
        if stored and stored.ordered and isinstance(layer, Linear) and layer.takes_orders:
            stored = stored.ordered.tensor
        layout = Layout(stored.layout, stored.group_size) if stored else Layout()
        total += _leaf_bytes(leaf, layout, ctx)
    layers = (layer for _, layer in find_layers(model))
    return total + sum(layer.adapter_bytes for layer in layers if isinstance(layer, Linear))


def _leaf_bytes(leaf: Leaf, stored: Layout, ctx: Context) -> int:
    if leaf.role is Role.UNUSED:
        return 0
    num_elements = math.prod(leaf.shape)
    if leaf.role is Role.ABSORBED:
        return num_elements // ctx.tp.size * ctx.dtype.itemsize
    if leaf.role not in (Role.MATRIX, Role.EMBEDDING):
        return num_elements * ctx.dtype.itemsize
    share = -(-num_elements // ctx.tp.size)
    layout = choose_layout(leaf.role, stored, leaf.shape[-1], ctx.quantization)
    return count_bytes(layout.name, layout.group_size, share, ctx.dtype)
