"""Choosing the blocks of tokens that attention reads: the best token of a block speaks for it.

An indexer keeps one short key of each token in pages of its own. A query has a small head for each
key/value head of attention, and a block's score is the highest of q · k over those of its tokens
that the query sees. The blocks of the highest scores are read for that key/value head, and always
the last few up to the query's own.

Shapes: T tokens, H heads of the indexer, D features of its keys, E of them rotated, k blocks
chosen, L positions, S token slots.

Source:
    MiniMax 2026, "MiniMax-M3"; MiniMaxM3VLIndexer of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import CacheProvider, StepBatch
from headstock.ops.base import Spec, op, spec_of
from headstock.ops.block_indexer_reference import ReferenceBlockIndexer
from headstock.ops.pages_reference import NONE_CHOSEN

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

NO_BLOCK = NONE_CHOSEN
"""Stands where a query has fewer blocks to see than may be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockIndexerSpec:
    """What a model's indexers of blocks have in common; one provider is built per distinct spec.

    Attributes:
        num_heads: H: key/value heads of attention on this rank.
        head_dim: D.
        rotary_size: E: the first features of queries and keys, halves of which are pairs.
        block_size: Tokens of a block; blocks begin at multiples of it.
        num_chosen: Most blocks that a head of a query chooses.
        num_local: How many of them are the last ones up to the query's own; up to ``num_chosen``.
        dtype: Of the activations.
        kv_dtype: Of the pages.
        page_size: Tokens a page holds.
        max_length: Longest request. Tokens.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
    """

    num_heads: int
    head_dim: int
    rotary_size: int
    block_size: int
    num_chosen: int
    num_local: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    max_length: int
    max_rows: int
    max_tokens: int

    def as_spec(self) -> Spec:
        """Return what the op ``index_blocks`` is resolved for."""
        return spec_of(
            self,
            "num_heads",
            "head_dim",
            "rotary_size",
            "block_size",
            "num_chosen",
            "num_local",
            "page_size",
            "max_length",
        )


class BlockIndexerProvider(CacheProvider, Protocol):
    """The indexer for one spec on one device; shared by the layers that have that spec."""

    def run(
        self, q_THD: Tensor, k_TD: Tensor, cos_sin_LE: Tensor, kv: Tensor, batch: StepBatch
    ) -> Tensor:
        """Rotate queries and keys, store the keys, and choose what each query's heads see.

        Args:
            q_THD: Queries, normalised, not yet rotated. [T, H, D]
            k_TD: Keys of the step's tokens, likewise. [T, D]
            cos_sin_LE: Table of :func:`headstock.ops.rotary.rotate`. [L, E]
            kv: This layer's pages.
            batch: As it was planned.

        Returns:
            Numbers of blocks in their row, in any order; behind them :data:`NO_BLOCK`, where a
            query sees fewer. Of padding tokens: anything. k is ``num_chosen``, or the blocks of
            ``max_kv`` tokens where these are less. int32. [T, H, k]
        """
        ...

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return rotated keys at token slots. [S, D]"""
        ...


@op(is_built=True)
def index_blocks(spec: BlockIndexerSpec, device: OpDevice) -> BlockIndexerProvider:
    """Build the reference provider: any page size. Layers resolve with ``as_spec`` of the spec.

    Its page format ``pages-index-td`` is [pages, page size, D].
    """
    return ReferenceBlockIndexer(spec, device)
