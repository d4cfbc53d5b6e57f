"""Attention to the last tokens and to *entries*, each of which stands for a stretch of tokens.

What is cached of a token is one vector that is both the key and the value of all heads. A query
reads those of the last ``window`` tokens, and of what lies before, entries: one vector for each
``rate`` tokens, made by :func:`compress_tokens` when the last of them comes. An entry is read by
queries from that token on; the window may still reach its tokens. All of a query's tokens and
entries share one softmax with a sink for each head.

Three kinds of pages hold this. Tokens' vectors lie in a group that keeps a window. So do the keys
and gates that entries are made of, while these are not complete. Entries lie in a group that keeps
everything, in the page of the last of their tokens: it has room for :func:`entries_a_page` of them.
So a page of entries says nothing of tokens behind its own, and prefixes are shared page by page as
they are elsewhere.

Shapes: T tokens, H heads, D features of a vector, the last E of them rotated, m tokens of an entry
(the rate), k entries chosen, S entry slots, L positions.

Source:
    DeepSeek-AI 2026, "DeepSeek-V4", sections 2.3.1 and 2.3.2; DeepseekV4Attention,
    DeepseekV4CSACompressor and DeepseekV4Indexer of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import NARROW_PAGES, CacheProvider, StepBatch
from headstock.ops.base import Spec, op, spec_of
from headstock.ops.compressed_reference import (
    ReferenceCompressedAttention,
    best_entries,
    make_entries,
    turn_last,
)
from headstock.ops.pages_reference import NONE_CHOSEN

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

ENTRIES = "entries"
"""The feature that queries read entries, too."""
CHOSEN_ENTRIES = "chosen_entries"
"""The feature that of entries they read those that were chosen for them, and no others."""
NO_ENTRY = NONE_CHOSEN
"""Stands where a query has fewer entries to see than may be chosen."""


def entries_a_page(page_size: int, rate: int) -> int:
    """Return how many entries a page has room for.

    Args:
        page_size: Tokens it stands for.
        rate: m. One of both divides the other.
    """
    return max(1, page_size // rate)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedSpec:
    """What a model's layers have in common; one provider is built per distinct spec.

    Attributes:
        num_heads: H, on this rank.
        head_dim: D.
        window: Tokens a query sees, itself included.
        rate: m; 0: there are no entries.
        num_chosen: Most entries that a query reads, where they are chosen; 0: it reads all.
        scale: Multiplies q·k. Dimensionless.
        dtype: Of the activations.
        kv_dtype: Of the pages.
        page_size: Tokens a page holds.
        max_length: Longest request. Tokens.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
    """

    num_heads: int
    head_dim: int
    window: int
    scale: float
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    max_length: int
    max_rows: int
    max_tokens: int
    rate: int = 0
    num_chosen: int = 0

    def as_spec(self) -> Spec:
        """Return what the op ``compressed_attention`` is resolved for."""
        page_dtype = str(self.kv_dtype).removeprefix("torch.")
        asked = {ENTRIES: self.rate > 0, CHOSEN_ENTRIES: self.num_chosen > 0}
        return spec_of(
            self,
            "num_heads",
            "head_dim",
            "window",
            "rate",
            "page_size",
            "max_length",
            features=NARROW_PAGES.get(page_dtype, frozenset())
            | {feature for feature, is_asked in asked.items() if is_asked},
        )


@dataclass(frozen=True, slots=True)
class EntryPages:
    """What a layer's entries are read from.

    Attributes:
        pages: [pages, entries a page, D]
        batch: The step as the group of these pages sees it.
    """

    pages: Tensor
    batch: StepBatch


class CompressedProvider(CacheProvider, Protocol):
    """Attention for one spec on one device; shared by the layers that have that spec.

    A step calls ``plan`` once, then for each layer ``write`` and ``run``. Its own pages are those
    of tokens' vectors.
    """

    def write(self, kv_TD: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store the vectors of the step's tokens, rotated."""
        ...

    def run(
        self,
        q_THD: Tensor,
        sinks_H: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        entries: EntryPages | None = None,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            q_THD: Queries, rotated. [T, H, D]
            sinks_H: A logit without a value for each head. float32. [H]
            kv: This layer's pages.
            batch: As it was planned.
            entries: With feature ``entries``, and then always: where entries are, those of the
                step among them.
            chosen_Tk: With feature ``chosen_entries``, and then always: which entries each query
                reads, as :func:`choose_entries` returns them. int32. [T, k]

        Returns:
            Output in q's dtype; of padding tokens: anything finite or not. [T, H, D]
        """
        ...

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return vectors at token slots. [S, D]"""
        ...


@op(is_built=True, features=frozenset({ENTRIES, CHOSEN_ENTRIES}))
def compressed_attention(spec: CompressedSpec, device: OpDevice) -> CompressedProvider:
    """Build the reference provider. Layers resolve with :meth:`CompressedSpec.as_spec`.

    Its layout ``pages-shared-td`` is [pages, page size, D].
    """
    return ReferenceCompressedAttention(spec, device)


@op()
def compress_tokens(
    waiting_TG: Tensor,
    bias_mF: Tensor,
    norm_D: Tensor,
    cos_sin_LE: Tensor,
    waiting: Tensor,
    waiting_batch: StepBatch,
    entries: Tensor,
    batch: StepBatch,
    *,
    eps: float,
) -> None:
    """Store what entries are made of, and make those whose last token is the step's.

    Entry i of a row is norm(sum over its tokens of softmax(gate + bias) · key), feature by feature,
    whose last features are rotated by the position of token i m. Its tokens are i m up to
    i m + m - 1 where F is D. Where F is 2 D each token has two keys and two gates, and the m tokens
    before, where there are any, count with their first, its own tokens with their second.

    Resolved with the sizes ``head_dim``, ``rate``, ``rotary_size`` and ``page_size``.

    Args:
        waiting_TG: Keys and gates of the step's tokens, side by side. [T, 2 F]
        bias_mF: Added to the gates by place in the entry. float32. [m, F]
        norm_D: RMS-norm weight of entries. [D]
        cos_sin_LE: Table of :func:`headstock.ops.rotary.rotate`; neighbours make pairs. [L, E]
        waiting: Pages of keys and gates. [pages, page size, 2 F]
        waiting_batch: The step, as their group sees it: it reaches back m - 1 tokens before those
            of the step, 2 m - 1 where F is 2 D.
        entries: Pages of entries; entry i lies in the page of token i m + m - 1, at this token's
            place in the page divided by m. [pages, entries a page, D]
        batch: The step, as their group sees it.
        eps: Of the norm.

    Source:
        ``DeepseekV4HCACompressor`` and ``DeepseekV4CSACompressor`` of transformers.
    """
    slots_T = waiting_batch.write_slots_T[: len(waiting_TG)]
    waiting.view(-1, waiting.shape[2]).index_copy_(0, slots_T, waiting_TG.to(waiting.dtype))
    options: dict[str, Any] = {"bias_mF": bias_mF, "norm_D": norm_D, "cos_sin_LE": cos_sin_LE}
    made_CD, slots_C = make_entries(waiting, waiting_batch, batch, eps=eps, **options)
    page_size, rate = waiting.shape[1], len(bias_mF)
    slots_C = slots_C // page_size * entries.shape[1] + slots_C % page_size // rate
    entries.view(-1, entries.shape[2]).index_copy_(0, slots_C, made_CD.to(entries.dtype))


@op()
def choose_entries(
    q_THD: Tensor,
    weights_TH: Tensor,
    entries: Tensor,
    batch: StepBatch,
    *,
    page_size: int,
    rate: int,
    num_chosen: int,
) -> Tensor:
    """Choose the entries of the best scores: sum over heads h of w_h · relu(q_h · entry).

    Resolved with the sizes ``num_heads``, ``head_dim``, ``rate``, ``num_chosen`` and ``page_size``.

    Args:
        q_THD: Queries of small heads, rotated. [T, H, D]
        weights_TH: What heads' scores are multiplied by. [T, H]
        entries: Pages of entries of that size, as :func:`compress_tokens` stores them.
        batch: The step, as their group sees it.
        page_size: Tokens a page stands for.
        rate: m.
        num_chosen: Most entries that a query chooses.

    Returns:
        Numbers of entries in their row, in any order; behind them :data:`NO_ENTRY`, where a query
        sees fewer. Of padding tokens: anything. k is ``num_chosen``, or what ``max_kv`` of the
        batch has room for where that is less, at least 1. int32. [T, k]
    """
    return best_entries(
        q_THD, weights_TH, entries, batch, page_size=page_size, rate=rate, num_chosen=num_chosen
    )


@op()
def rotate_last(
    x_THD: Tensor, positions_T: Tensor, cos_sin_LE: Tensor, *, is_inverse: bool
) -> Tensor:
    """Rotate the last E features of each head by their position's angles, or back.

    An output whose values were rotated as keys is rotated back at the query's position: it then
    depends on distances alone. Resolved with the sizes ``head_dim`` and ``rotary_size`` (E).

    Args:
        x_THD: Queries, keys or outputs. [T, H, D]
        positions_T: Row of the table for each token. int64. [T]
        cos_sin_LE: Table of :func:`headstock.ops.rotary.rotate`; neighbours make pairs. [L, E]
        is_inverse: Whether to rotate back.

    Returns:
        In the dtype of ``x_THD``. [T, H, D]

    Source:
        ``apply_rotary_pos_emb`` of transformers' ``deepseek_v4``.
    """
    return turn_last(x_THD, positions_T, cos_sin_LE, is_inverse=is_inverse)
