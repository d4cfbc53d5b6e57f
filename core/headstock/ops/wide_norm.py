"""Norms of queries and keys over all heads together, which several ranks may share.

In two ops, so that ranks can add up squares in between. Shapes: T tokens, C columns of a fused
projection: queries, keys, values, side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op


@op()
def sum_squares(qkv_TC: Tensor, *, q_size: int, k_size: int) -> Tensor:
    """Return the sums of the squares of each token's queries and of its keys.

    Args:
        qkv_TC: [T, C]
        q_size: Columns of the queries.
        k_size: Columns of the keys, behind them.

    Returns:
        float32. [T, 2]
    """
    q_TQ, k_TK, _ = qkv_TC.float().tensor_split((q_size, q_size + k_size), dim=1)
    return torch.stack((q_TQ.square().sum(1), k_TK.square().sum(1)), dim=1)


@op()
def norm_queries_and_keys(
    qkv_TC: Tensor,
    squares_T2: Tensor,
    q_norm_Q: Tensor,
    k_norm_K: Tensor,
    *,
    q_width: int,
    k_width: int,
    eps: float,
) -> Tensor:
    """Divide queries and keys by their root mean squares, and scale them.

    An implementation may write into ``qkv_TC`` and return that.

    Args:
        qkv_TC: [T, C]
        squares_T2: Sums of squares, of :func:`sum_squares`, over all ranks. float32. [T, 2]
        q_norm_Q: Weights of this rank's queries. [Q]
        k_norm_K: Likewise of its keys. [K]
        q_width: Queries over all ranks, by which the sums of squares are divided.
        k_width: Keys, each counted as often as ranks hold it.
        eps: Added to the means of squares.

    Returns:
        With values as they were. [T, C]

    Source:
        ``Olmo2Attention`` and ``MiniMaxM2Attention`` of Hugging Face transformers.
    """
    q_size, k_size = q_norm_Q.shape[0], k_norm_K.shape[0]
    q_TQ, k_TK, v_TV = qkv_TC.tensor_split((q_size, q_size + k_size), dim=1)
    q_T1, k_T1 = squares_T2.split(1, dim=1)
    q_TQ = (q_TQ.float() * torch.rsqrt(q_T1 / q_width + eps)).to(qkv_TC.dtype) * q_norm_Q
    k_TK = (k_TK.float() * torch.rsqrt(k_T1 / k_width + eps)).to(qkv_TC.dtype) * k_norm_K
    return torch.cat((q_TQ, k_TK, v_TV), dim=1)
