"""Choosing the tokens that attention reads: a small score of every cached token, the best of them.

An *indexer* keeps one short key of each token in pages of its own. Queries of some small heads are
compared with all keys of their row, and a token's score is

    sum over heads h of w_h · relu(q_h · k)

Attention then reads the tokens of the highest scores, and no others.

Shapes: T tokens, H heads of the indexer, D features of its keys, E of them rotated, k tokens
chosen, L positions, S token slots.

Source:
    DeepSeek-AI 2025, "DeepSeek-V3.2", section 2.1; DeepseekV32Indexer of transformers. The rotation
    by a Hadamard matrix and the narrow floats there change scores by rounding alone, and are left
    out here as they are in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import CacheProvider, StepBatch
from headstock.ops.base import Spec, op, spec_of
from headstock.ops.indexer_reference import ReferenceIndexer
from headstock.ops.pages_reference import NONE_CHOSEN

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

NO_TOKEN = NONE_CHOSEN
"""Stands where a query has fewer tokens to see than may be chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerSpec:
    """What a model's indexers have in common; one provider is built per distinct spec.

    Attributes:
        num_heads: H. Every rank has all of them.
        head_dim: D.
        rotary_size: E: the first features of queries and keys.
        is_interleaved: Which features make pairs, as in :func:`headstock.ops.rotary.rotate`.
        num_chosen: Most tokens that a query chooses.
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
    is_interleaved: bool
    num_chosen: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    max_length: int
    max_rows: int
    max_tokens: int

    def as_spec(self) -> Spec:
        """Return what the op ``index_tokens`` is resolved for."""
        return spec_of(
            self, "num_heads", "head_dim", "rotary_size", "num_chosen", "page_size", "max_length"
        )


class IndexerProvider(CacheProvider, Protocol):
    """The indexer for one spec on one device; shared by the layers that have that spec."""

    def run(
        self,
        q_THD: Tensor,
        k_TD: Tensor,
        weights_TH: Tensor,
        cos_sin_LE: Tensor,
        kv: Tensor,
        batch: StepBatch,
    ) -> Tensor:
        """Rotate queries and keys, store the keys, and choose what each query sees.

        Args:
            q_THD: Queries, not yet rotated. [T, H, D]
            k_TD: Keys of the step's tokens, normalised, not yet rotated. [T, D]
            weights_TH: What heads' scores are multiplied by. [T, H]
            cos_sin_LE: Table of :func:`headstock.ops.rotary.rotate`. [L, E]
            kv: This layer's pages.
            batch: As it was planned.

        Returns:
            Positions of tokens in their row, in any order; behind them :data:`NO_TOKEN`, where a
            query sees fewer. Of padding tokens: anything. k is ``num_chosen``, or ``max_kv`` of
            the batch where that is less. int32. [T, k]
        """
        ...

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return rotated keys at token slots. [S, D]"""
        ...


@op(is_built=True)
def index_tokens(spec: IndexerSpec, device: OpDevice) -> IndexerProvider:
    """Build the reference provider: any page size. Layers resolve with ``IndexerSpec.as_spec``.

    Its page format ``pages-index-td`` is [pages, page size, D].
    """
    return ReferenceIndexer(spec, device)
