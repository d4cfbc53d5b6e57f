"""Normalisation, resolved with the size ``size``: D. Shapes: T tokens, D features."""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op

WIDE_WEIGHT = "wide-weight"
"""Feature of providers that take float32 weights with narrower activations: the product is rounded
once, as where a weight is 1 and something small."""


@op(features=frozenset({WIDE_WEIGHT}))
def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """Divide each row by its root mean square, then scale by ``weight_D``.

    The mean is taken in float32 whatever the input dtype. Leading dimensions may be several.

    Args:
        x_TD: Activations, any float dtype. [..., D]
        weight_D: Learned scale, in the dtype of ``x_TD``, or float32: see :data:`WIDE_WEIGHT`. [D]
        eps: Added to the mean square before the root. Dimensionless.

    Returns:
        Normalised activations in the dtype of ``x_TD``. [..., D]

    Source:
        Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    x32 = x_TD.to(torch.float32)
    inverse_rms = torch.rsqrt(x32.square().mean(dim=-1, keepdim=True) + eps)
    if weight_D.dtype != x_TD.dtype:
        return (x32 * inverse_rms * weight_D).to(x_TD.dtype)
    return (x32 * inverse_rms).to(x_TD.dtype) * weight_D


@op(features=frozenset({WIDE_WEIGHT}))
def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Add ``x_TD`` to the residual stream and normalise the sum.

    An implementation may write the sum into ``residual_TD`` and return that.

    Args:
        x_TD: Output of the layer before. [T, D]
        residual_TD: The residual stream. [T, D]
        weight_D: Learned scale. [D]
        eps: As in :func:`rms_norm`.

    Returns:
        The normalised sum and the sum. [T, D] each
    """
    total_TD = x_TD + residual_TD
    return rms_norm.reference(total_TD, weight_D, eps=eps), total_TD


@op()
def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float) -> Tensor:
    """Take its mean from each row, divide by its deviation, then scale and shift.

    Both are taken in float32 whatever the input dtype.

    Args:
        x_TD: Activations, any float dtype. [T, D]
        weight_D: Learned scale, in the dtype of ``x_TD``. [D]
        bias_D: Learned shift, likewise; None: none. [D]
        eps: Added to the variance before the root. Dimensionless.

    Returns:
        Normalised activations in the dtype of ``x_TD``. [T, D]

    Source:
        Ba et al. 2016, "Layer Normalization", eq. 4.
    """
    x32_TD = x_TD.to(torch.float32)
    x32_TD = x32_TD - x32_TD.mean(dim=-1, keepdim=True)
    inverse_T1 = torch.rsqrt(x32_TD.square().mean(dim=-1, keepdim=True) + eps)
    y_TD = x32_TD * inverse_T1 * weight_D.to(torch.float32)
    return (y_TD if bias_D is None else y_TD + bias_D.to(torch.float32)).to(x_TD.dtype)


@op()
def add_layer_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Add ``x_TD`` to the residual stream and normalise the sum.

    An implementation may write the sum into ``residual_TD`` and return that.

    Args:
        x_TD: Output of the layer before. [T, D]
        residual_TD: The residual stream. [T, D]
        weight_D: Learned scale. [D]
        bias_D: Learned shift; None: none. [D]
        eps: As in :func:`layer_norm`.

    Returns:
        The normalised sum and the sum. [T, D] each
    """
    total_TD = x_TD + residual_TD
    return layer_norm.reference(total_TD, weight_D, bias_D, eps=eps), total_TD
