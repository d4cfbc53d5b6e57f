"""Rotary position embedding, and the fused preparation of queries, keys and values.

Shapes: T tokens, H query heads, K key/value heads, D head size, L positions, C = rotated features.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.base import op
from headstock.ops.norm import WIDE_WEIGHT, rms_norm

if TYPE_CHECKING:
    from headstock.ops.attention import AttentionProvider, StepBatch


def rotate(
    x_THD: Tensor, positions_T: Tensor, cos_sin_LC: Tensor, *, is_interleaved: bool
) -> Tensor:
    """Rotate pairs of the first C features of each head by their position's angles.

    Args:
        x_THD: Queries or keys. [T, H, D]
        positions_T: Row of the table for each token. int64. [T]
        cos_sin_LC: Cosines, then sines, of C / 2 angles. float32. [L, C]
        is_interleaved: Pairs are neighbours (2 i, 2 i + 1), not halves (i, i + C / 2).

    Returns:
        In the dtype of ``x_THD``. [T, H, D]

    Source:
        Su et al. 2021, "RoFormer", eq. 34; halves as in Hugging Face transformers.
    """
    size = cos_sin_LC.shape[-1]
    cos_T1F, sin_T1F = cos_sin_LC[positions_T].unsqueeze(1).chunk(2, dim=-1)
    turned, kept = x_THD[..., :size].to(torch.float32), x_THD[..., size:]
    if is_interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
        pairs = (first * cos_T1F - second * sin_T1F, second * cos_T1F + first * sin_T1F)
        turned = torch.stack(pairs, dim=-1).flatten(-2)
    else:
        first, second = turned.chunk(2, dim=-1)
        pairs = (first * cos_T1F - second * sin_T1F, second * cos_T1F + first * sin_T1F)
        turned = torch.cat(pairs, dim=-1)
    return torch.cat((turned.to(x_THD.dtype), kept), dim=-1)


NORMED_LAST = "normed-last"
"""The feature that queries and keys are normalised behind the rotation."""

NORMED_VALUES = "normed-values"
"""The feature that each value head is divided by its root mean square: a norm without weights."""

KEYS_AS_VALUES = "keys-as-values"
"""The feature that keys, as they came, are the values too."""


@op(features=frozenset({WIDE_WEIGHT, NORMED_LAST, NORMED_VALUES, KEYS_AS_VALUES}))
def rotate_and_write(
    qkv_TC: Tensor,
    cos_sin_LC: Tensor | None,
    q_norm_D: Tensor | None,
    k_norm_D: Tensor | None,
    kv: Tensor,
    batch: StepBatch,
    *,
    provider: AttentionProvider,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    eps: float,
    is_interleaved: bool,
    is_normed_last: bool = False,
    has_normed_values: bool = False,
    takes_keys: bool = False,
) -> Tensor:
    """Split the fused projection, normalise and rotate queries and keys, store keys and values.

    Resolved with the tag of the provider's ``page_format`` and the sizes ``num_heads``,
    ``num_kv_heads``, ``head_dim``, ``rotary_size`` (C; 0 without a table) and ``page_size``. An
    implementation that stores by itself requires its tag; this one asks the provider.

    Args:
        qkv_TC: Queries, keys, values, side by side; with ``takes_keys`` without values.
            [T, (H + 2 K) D]
        cos_sin_LC: Table of :func:`rotate`; None leaves positions out.
        q_norm_D: RMS-norm weight of each query head; None: no norm. In float32 with feature
            ``wide-weight``. [D]
        k_norm_D: Likewise for keys. [D]
        kv: This layer's pages.
        batch: The step.
        provider: Whose page format ``kv`` has.
        num_heads: H.
        num_kv_heads: K.
        head_dim: D.
        eps: Of the norms.
        is_interleaved: As in :func:`rotate`.
        is_normed_last: Whether norms come behind the rotation; with feature ``normed-last`` alone.
        has_normed_values: Whether values are divided by their root mean square; with feature
            ``normed-values`` alone.
        takes_keys: Whether keys before norm and rotation are the values; with feature
            ``keys-as-values`` alone.

    Returns:
        Queries ready for attention. [T, H, D]
    """
    heads = qkv_TC.unflatten(-1, (-1, head_dim))
    q_THD, k_TKD, v_TKD = _parts_of(heads, num_heads, num_kv_heads, takes_keys=takes_keys)
    if has_normed_values:
        v_TKD = rms_norm.reference(v_TKD, torch.ones_like(v_TKD[0, 0]), eps=eps)
    how = {"eps": eps, "is_interleaved": is_interleaved, "is_normed_last": is_normed_last}
    prepare = partial(_normed_and_turned, batch.positions_T, cos_sin_LC, **how)
    provider.write(prepare(k_TKD, k_norm_D), v_TKD, kv, batch)
    return prepare(q_THD, q_norm_D)


def _parts_of(
    heads: Tensor, num_heads: int, num_kv_heads: int, *, takes_keys: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values; these are the keys where ``takes_keys``."""
    if takes_keys:
        q_THD, k_TKD = heads.split((num_heads, num_kv_heads), 1)
        return q_THD, k_TKD, k_TKD
    q_THD, k_TKD, v_TKD = heads.split((num_heads, num_kv_heads, num_kv_heads), 1)
    return q_THD, k_TKD, v_TKD


def _normed_and_turned(
    positions_T: Tensor,
    cos_sin_LC: Tensor | None,
    x_THD: Tensor,
    weight_D: Tensor | None,
    *,
    eps: float,
    is_interleaved: bool,
    is_normed_last: bool,
) -> Tensor:
    """Return queries or keys normalised, where ``weight_D`` is given, and rotated. [T, H, D]"""
    if weight_D is not None and not is_normed_last:
        x_THD = rms_norm.reference(x_THD, weight_D, eps=eps)
    if cos_sin_LC is not None:
        x_THD = rotate(x_THD, positions_T, cos_sin_LC, is_interleaved=is_interleaved)
    if weight_D is not None and is_normed_last:
        x_THD = rms_norm.reference(x_THD, weight_D, eps=eps)
    return x_THD


@op(features=frozenset({WIDE_WEIGHT}))
def rotate_queries(
    q_TC: Tensor,
    cos_sin_LC: Tensor | None,
    q_norm_D: Tensor | None,
    positions_T: Tensor,
    *,
    num_heads: int,
    head_dim: int,
    eps: float,
    is_interleaved: bool,
) -> Tensor:
    """Normalise and rotate queries where another layer has stored the keys and values.

    Resolved with the sizes ``num_heads``, ``head_dim`` and ``rotary_size`` (C; 0 without a table).

    Args:
        q_TC: Queries. [T, H D]
        cos_sin_LC: Table of :func:`rotate`; None leaves positions out.
        q_norm_D: RMS-norm weight of each head; None: no norm. In float32 with feature
            ``wide-weight``. [D]
        positions_T: Row of the table for each token. int64. [T]
        num_heads: H.
        head_dim: D.
        eps: Of the norm.
        is_interleaved: As in :func:`rotate`.

    Returns:
        Queries ready for attention. [T, H, D]
    """
    q_THD = q_TC.unflatten(-1, (num_heads, head_dim))
    if q_norm_D is not None:
        q_THD = rms_norm.reference(q_THD, q_norm_D, eps=eps)
    if cos_sin_LC is None:
        return q_THD
    return rotate(q_THD, positions_T, cos_sin_LC, is_interleaved=is_interleaved)
