"""Scales of the KV cache that a checkpoint brings, which are left out. No torch.

They are calibrated once for all tokens of a layer, for caches with one scale a layer. Pages in 8
bits have a scale for each token and head, made of the values that are written: nothing is clipped,
and what is rounded is never rounded more.
"""

from __future__ import annotations

from collections.abc import Mapping

from headstock.checkpoint.files import StoredTensor

PARTS = frozenset(
    {"q_scale", "k_scale", "v_scale", "kv_scale", "q_zero_point", "k_zero_point", "v_zero_point"}
)
OLD_PARTS = ("k_proj.output_scale", "v_proj.output_scale")
"""As compressed-tensors wrote them at first."""
WHY = "pages in 8 bits have a scale of their own for each token and head"


def is_cache_scale(name: str) -> bool:
    """Whether the tensor ``name`` is a scale of queries, keys or values."""
    return name.rpartition(".")[2] in PARTS or name.endswith(OLD_PARTS)


def part_cache_scales(
    index: Mapping[str, StoredTensor],
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """Return the tensors without the cache's scales, and the names of those."""
    left_out = tuple(name for name in index if is_cache_scale(name))
    return {name: t for name, t in index.items() if not is_cache_scale(name)}, left_out
