"""Ops of model families that no backend has kernels for yet."""

from __future__ import annotations

ENTRIES = frozenset(
    {
        "choose_entries",
        "collapse_streams",
        "compress_tokens",
        "compressed_attention",
        "expand_streams",
        "merge_streams",
        "multiply_groups",
        "rotate_last",
        "route_by_token",
        "route_experts",
        "spread_streams",
    }
)
"""Of DeepSeek V4: entries of tokens, hyper-connections, and how experts are chosen."""
