"""Rotary position embedding, and the fused preparation of queries, keys and values.

Shapes: T tokens, H query heads, K key/value heads, D head size, L positions, C = rotated features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops.base import op
from headstock.ops.cases.rotary import rotate_and_write_cases
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


@op(cases=rotate_and_write_cases, features=frozenset({WIDE_WEIGHT, NORMED_LAST}))
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
) -> Tensor:
    """Split the fused projection, normalise and rotate queries and keys, store keys and values.

    Resolved with the tag of the provider's layout as ``layout`` and the sizes ``num_heads``,
    ``num_kv_heads``, ``head_dim``, ``rotary_size`` (C; 0 without a table) and ``page_size``. An
    implementation that stores by itself requires its tag; this one asks the provider.

    Args:
        qkv_TC: Queries, keys, values, side by side. [T, (H + 2 K) D]
        cos_sin_LC: Table of :func:`rotate`; None leaves positions out.
        q_norm_D: RMS-norm weight of each query head; None: no norm. In float32 with feature
            ``wide-weight``. [D]
        k_norm_D: Likewise for keys. [D]
        kv: This layer's pages.
        batch: The step.
        provider: Whose layout ``kv`` has.
        num_heads: H.
        num_kv_heads: K.
        head_dim: D.
        eps: Of the norms.
        is_interleaved: As in :func:`rotate`.
        is_normed_last: Whether norms come behind the rotation; with feature ``normed-last`` alone.

    Returns:
        Queries ready for attention. [T, H, D]
    """
    heads = qkv_TC.unflatten(-1, (num_heads + 2 * num_kv_heads, head_dim))
    q_THD, k_TKD, v_TKD = heads.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    parts: list[Tensor] = []
    for x, weight_D in ((q_THD, q_norm_D), (k_TKD, k_norm_D)):
        if weight_D is not None and not is_normed_last:
            x = rms_norm.reference(x, weight_D, eps=eps)
        if cos_sin_LC is not None:
            x = rotate(x, batch.positions_T, cos_sin_LC, is_interleaved=is_interleaved)
        if weight_D is not None and is_normed_last:
            x = rms_norm.reference(x, weight_D, eps=eps)
        parts.append(x)
    q_THD, k_TKD = parts
    provider.write(k_TKD, v_TKD, kv, batch)
    return q_THD
