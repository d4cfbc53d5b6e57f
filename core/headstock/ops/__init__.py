"""What hardware must compute: references, inputs, tolerances. Importing this loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from headstock.ops.base import ALL_OPS, Op

OP_MODULES = (
    "activation",
    "attention",
    "block_indexer",
    "compressed",
    "drafts",
    "embedding",
    "features",
    "gates",
    "grouped_linear",
    "hyper_connections",
    "indexer",
    "latent",
    "linear",
    "linear_attention",
    "lora",
    "mamba2",
    "maps",
    "media",
    "model_step",
    "moe",
    "norm",
    "outputs",
    "pooling",
    "rotary",
    "routing",
    "sampling",
    "selective_scan",
    "short_convolution",
    "spans",
    "sparse",
    "steps",
    "streams",
    "vision",
    "wide_norm",
)


def load_all_ops() -> Mapping[str, Op[..., Any]]:
    """Import every module that declares ops, and return the ops by name. Imports torch."""
    for module in OP_MODULES:
        import_module(f"headstock.ops.{module}")
    return ALL_OPS
