"""Residual streams that layers read a mixture of, and are mixed into again: hyper-connections.

A token has N streams in place of one residual sum. What a layer takes is a weighted sum of them;
what it returns is added to each stream by a weight of its own, and the streams are mixed by an
N x N matrix whose rows and columns sum to 1. All weights are made of the streams themselves.

Streams of a token lie side by side. Shapes: T tokens, N streams, D hidden size, C = N D, M = N N
mixing weights, X = 2 N + M weights in all.

Source:
    Xie et al. 2026, "mHC: Manifold-Constrained Hyper-Connections"; DeepseekV4HyperConnection and
    DeepseekV4HyperHead of transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from headstock.ops.base import op


@op()
def spread_streams(x_TD: Tensor, *, num_streams: int) -> Tensor:
    """Return streams that all begin as the embedding. [T, N D]"""
    return x_TD.repeat(1, num_streams)


@op()
def collapse_streams(
    x_TC: Tensor,
    mix_XC: Tensor,
    base_X: Tensor,
    scale_3: Tensor,
    *,
    num_streams: int,
    norm_eps: float,
    eps: float,
    num_rounds: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a layer takes, and how its output and the streams are mixed afterwards.

    Weights are made in float32 whatever the dtype of the streams.

    Args:
        x_TC: Streams. [T, N D]
        mix_XC: What makes weights of the normalised streams: N to read them by, N to write by, then
            N N to mix by, row after row. float32. [X, N D]
        base_X: Added to these. float32. [X]
        scale_3: Multiplies each of the three kinds first. float32. [3]
        num_streams: N.
        norm_eps: Of the streams' norm, which has no weights.
        eps: Added to weights that may not be 0, and to sums that are divided by.
        num_rounds: How often columns are brought to 1, each time but the first behind the rows.

    Returns:
        The weighted sum in the dtype of ``x_TC``, [T, D]; the weights of writing, [T, N], and of
        mixing, from stream to stream, [T, N N], in float32.
    """
    count = num_streams
    made_TX = functional.linear(_normalised(x_TC, norm_eps), mix_XC)
    sizes = (count, count, count * count)
    kinds = zip(made_TX.split(sizes, 1), base_X.split(sizes), scale_3.unbind(), strict=True)
    read_TN, write_TN, mix_TM = (made * scale + base for made, base, scale in kinds)
    mix_TNN = mix_TM.unflatten(1, (count, count)).softmax(dim=2) + eps
    mix_TNN = mix_TNN / (mix_TNN.sum(dim=1, keepdim=True) + eps)
    for _ in range(num_rounds - 1):
        mix_TNN = mix_TNN / (mix_TNN.sum(dim=2, keepdim=True) + eps)
        mix_TNN = mix_TNN / (mix_TNN.sum(dim=1, keepdim=True) + eps)
    y_TD = _weighted_sum(x_TC, read_TN.sigmoid() + eps)
    return y_TD, 2 * write_TN.sigmoid(), mix_TNN.flatten(1)


@op()
def expand_streams(x_TC: Tensor, y_TD: Tensor, write_TN: Tensor, mix_TM: Tensor) -> Tensor:
    """Mix the streams, and add what a layer made to each.

    Args:
        x_TC: Streams. [T, N D]
        y_TD: The layer's output, in the same dtype. [T, D]
        write_TN: As :func:`collapse_streams` returns them, likewise ``mix_TM``. [T, N]
        mix_TM: Entry n N + m is what stream n gives stream m. [T, N N]

    Returns:
        In the dtype of ``x_TC``. [T, N D]
    """
    count = write_TN.shape[1]
    x_TND = x_TC.unflatten(1, (count, -1)).float()
    mix_TNN = mix_TM.unflatten(1, (count, count))
    mixed_TND = mix_TNN.transpose(1, 2) @ x_TND
    added_TND = write_TN.unsqueeze(2) * y_TD.unsqueeze(1).float()
    return (mixed_TND + added_TND).flatten(1).to(x_TC.dtype)


@op()
def merge_streams(
    x_TC: Tensor,
    mix_NC: Tensor,
    base_N: Tensor,
    scale_1: Tensor,
    *,
    norm_eps: float,
    eps: float,
) -> Tensor:
    """Return the sum of the streams that the output layer takes, weighed as a layer's input is.

    Args:
        x_TC: Streams. [T, N D]
        mix_NC: float32. [N, N D]
        base_N: float32. [N]
        scale_1: float32. [1]
        norm_eps: As in :func:`collapse_streams`, likewise ``eps``.
        eps: Added to the weights.

    Returns:
        In the dtype of ``x_TC``. [T, D]
    """
    made_TN = functional.linear(_normalised(x_TC, norm_eps), mix_NC)
    return _weighted_sum(x_TC, (made_TN * scale_1 + base_N).sigmoid() + eps)


def _normalised(x_TC: Tensor, eps: float) -> Tensor:
    x_TC = x_TC.float()
    return x_TC * torch.rsqrt(x_TC.square().mean(dim=1, keepdim=True) + eps)


def _weighted_sum(x_TC: Tensor, weights_TN: Tensor) -> Tensor:
    x_TND = x_TC.unflatten(1, (weights_TN.shape[1], -1)).float()
    return (weights_TN.unsqueeze(2) * x_TND).sum(dim=1).to(x_TC.dtype)
