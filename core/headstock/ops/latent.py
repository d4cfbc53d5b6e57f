"""Attention over latents: keys and values of all heads are made from one small vector a token.

What is cached of a token is its *latent*, normalised, and one rotated key that all heads share;
each head has matrices that make its key and its value of the latent. A query can be taken through
the key's matrix instead (it *absorbs* it), so that it is compared with the latents themselves, and
the value's matrix can be applied to the weighted sum of latents: nothing is made of each cached
token. Which of both costs less depends on the queries of a row, and is the provider's choice.

Shapes: T tokens, H heads, C features of a latent, E features of the rotated key, X = C + E cached
features of a token, N features of a head's key that are made of the latent, V features of its
value, L positions, S token slots.

Source:
    DeepSeek-AI 2024, "DeepSeek-V2", section 2.1; DeepseekV3Attention of transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from headstock.ops.attention import NARROW_PAGES, CacheProvider, StepBatch
from headstock.ops.base import Spec, op, spec_of
from headstock.ops.latent_reference import ReferenceLatentAttention
from headstock.ops.norm import rms_norm
from headstock.ops.rotary import rotate

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

CHOSEN_TOKENS = "chosen_tokens"
"""The feature that queries read tokens that were chosen for them, and no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSpec:
    """What a model's layers of latent attention have in common; one provider a distinct spec.

    Attributes:
        num_heads: H, on this rank.
        latent_size: C.
        rotary_size: E.
        key_size: N.
        value_size: V.
        dtype: Of the activations and of the heads' matrices.
        kv_dtype: Of the pages.
        page_size: Tokens a page holds.
        scale: Multiplies q·k. Dimensionless.
        num_chosen: Most tokens that a query reads, where an indexer chooses them; 0: it reads all.
        max_length: Longest request. Tokens.
        max_rows: Most rows of a step.
        max_tokens: Most tokens of a step.
    """

    num_heads: int
    latent_size: int
    rotary_size: int
    key_size: int
    value_size: int
    dtype: torch.dtype
    kv_dtype: torch.dtype
    page_size: int
    scale: float
    max_length: int
    max_rows: int
    max_tokens: int
    num_chosen: int = 0

    @property
    def cached_size(self) -> int:
        """X."""
        return self.latent_size + self.rotary_size

    def as_spec(self) -> Spec:
        """Return what the op ``latent_attention`` is resolved for."""
        page_dtype = str(self.kv_dtype).removeprefix("torch.")
        return spec_of(
            self,
            "num_heads",
            "latent_size",
            "rotary_size",
            "key_size",
            "value_size",
            "page_size",
            "max_length",
            features=NARROW_PAGES.get(page_dtype, frozenset())
            | ({CHOSEN_TOKENS} if self.num_chosen else frozenset()),
        )


class LatentProvider(CacheProvider, Protocol):
    """Latent attention for one spec on one device; shared by the layers that have that spec.

    A step calls ``plan`` once, then for each layer ``write`` and ``run``.
    """

    def write(self, latent_TC: Tensor, key_TE: Tensor, kv: Tensor, batch: StepBatch) -> None:
        """Store latents, normalised, and keys, rotated, of the step's tokens."""
        ...

    def run(
        self,
        q_THQ: Tensor,
        up_HUC: Tensor,
        kv: Tensor,
        batch: StepBatch,
        *,
        chosen_Tk: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            q_THQ: Queries: N features to compare with what is made of a latent, then E rotated
                ones. [T, H, N + E]
            up_HUC: What each head makes of a latent: N features of its key, then V of its value.
                [H, N + V, C]
            kv: This layer's pages.
            batch: As it was planned.
            chosen_Tk: With feature ``chosen_tokens``, and then always: positions of the tokens that
                each query reads, as the op ``index_tokens`` returns them. int32. [T, k]

        Returns:
            Output in q's dtype, contiguous; of padding tokens: anything finite or not. [T, H, V]
        """
        ...

    def read(self, kv: Tensor, slots_S: Tensor) -> Tensor:
        """Return latents and rotated keys at token slots, side by side. [S, X]"""
        ...


@op(is_built=True, features=frozenset({CHOSEN_TOKENS}))
def latent_attention(spec: LatentSpec, device: OpDevice) -> LatentProvider:
    """Build the reference provider: any page size, all queries absorb.

    Its page format ``pages-latent-tx`` is [pages, page size, X]. Layers resolve with
    :meth:`LatentSpec.as_spec`, where ``page_dtype`` is the dtype of the pages.
    """
    return ReferenceLatentAttention(spec, device)


@op()
def rotate_and_write_latent(
    q_THQ: Tensor,
    kv_TX: Tensor,
    cos_sin_LE: Tensor | None,
    norm_C: Tensor,
    kv: Tensor,
    batch: StepBatch,
    *,
    provider: LatentProvider,
    eps: float,
    is_interleaved: bool,
) -> Tensor:
    """Normalise latents, rotate keys and the last features of queries, store what is cached.

    Resolved with the tag of the provider's ``page_format`` and the sizes ``num_heads``,
    ``latent_size``, ``rotary_size``, ``key_size`` and ``page_size``. An implementation may rotate
    the queries where they lie.

    Args:
        q_THQ: Queries. [T, H, N + E]
        kv_TX: Latents and keys of the step's tokens, side by side. [T, X]
        cos_sin_LE: Table of :func:`headstock.ops.rotary.rotate`; None leaves positions out. [L, E]
        norm_C: RMS-norm weight of latents. [C]
        kv: This layer's pages.
        batch: The step.
        provider: Whose page format ``kv`` has.
        eps: Of the norm.
        is_interleaved: As in ``rotate``.

    Returns:
        Queries ready for attention. [T, H, N + E]
    """
    latent_size = norm_C.shape[0]
    latent_TC, key_TE = kv_TX[:, :latent_size], kv_TX[:, latent_size:]
    latent_TC = rms_norm.reference(latent_TC, norm_C, eps=eps)
    if cos_sin_LE is not None:
        plain_THN, turned_THE = q_THQ.split((q_THQ.shape[2] - key_TE.shape[1], key_TE.shape[1]), 2)
        both = torch.cat((turned_THE, key_TE.unsqueeze(1)), dim=1)
        both = rotate(both, batch.positions_T, cos_sin_LE, is_interleaved=is_interleaved)
        q_THQ = torch.cat((plain_THN, both[:, :-1]), dim=2)
        key_TE = both[:, -1]
    provider.write(latent_TC, key_TE, kv, batch)
    return q_THQ
