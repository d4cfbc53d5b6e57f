"""Sums and factors of features, where no product or norm is joined with them.

Shapes: T tokens, A and D features, H heads, L positions.
"""

from __future__ import annotations

from torch import Tensor

from headstock.ops.base import op


@op()
def add_features(x_TD: Tensor, y_TD: Tensor) -> Tensor:
    """Return the sum, such as of the residual stream and what a layer adds to it.

    Args:
        x_TD: [T, D]
        y_TD: In the same dtype. [T, D]

    Returns:
        [T, D]
    """
    return x_TD + y_TD


@op()
def scale_features(x_TA: Tensor, *, factor: float) -> Tensor:
    """Return factor · x, rounded once. Of columns of a wider tensor too. [T, A]"""
    return x_TA * factor


@op()
def order_features(x_TA: Tensor, order_A: Tensor) -> Tensor:
    """Return the features in another order: as the weight that multiplies them has them.

    Args:
        x_TA: [T, A]
        order_A: Which feature comes to each place, every one once. int64. [A]

    Returns:
        [T, A]
    """
    return x_TA.index_select(-1, order_A)


@op()
def scale_by_position(x_THD: Tensor, positions_T: Tensor, scale_L: Tensor) -> Tensor:
    """Multiply each token's heads by what the table has for its position.

    Args:
        x_THD: Queries. [T, H, D]
        positions_T: int64. [T]
        scale_L: float32; rounded to the dtype of ``x_THD`` first. [L]

    Returns:
        [T, H, D]

    Source:
        ``get_llama_4_attn_scale`` of Hugging Face transformers.
    """
    return x_THD * scale_L[positions_T].to(x_THD.dtype)[:, None, None]


@op()
def weigh_features(x_TA: Tensor, weight_A: Tensor) -> Tensor:
    """Multiply each feature by its weight.

    Args:
        x_TA: [T, A]
        weight_A: In the same dtype. [A]

    Returns:
        [T, A]
    """
    return x_TA * weight_A


@op()
def scale_tokens(x_TA: Tensor, factors_T1: Tensor) -> Tensor:
    """Multiply each token's features by its factor.

    Args:
        x_TA: [T, A]
        factors_T1: float32; rounded to the dtype of ``x_TA`` first. [T, 1]

    Returns:
        [T, A]
    """
    return x_TA * factors_T1.to(x_TA.dtype)


@op()
def weigh_and_shift(x_TA: Tensor, weight_A: Tensor, shift_A: Tensor) -> Tensor:
    """Return weight · x + shift, computed in float32.

    Args:
        x_TA: [T, A]
        weight_A: float32. [A]
        shift_A: float32. [A]

    Returns:
        In the dtype of ``x_TA``. [T, A]
    """
    return (x_TA.float() * weight_A + shift_A).to(x_TA.dtype)


@op()
def bound_features(x_TA: Tensor, bounds_2: Tensor) -> Tensor:
    """Return features within bounds.

    Args:
        x_TA: [T, A]
        bounds_2: The least and the largest that there may be; infinite: none. In the same dtype.

    Returns:
        [T, A]
    """
    return x_TA.clamp(bounds_2[0], bounds_2[1])
