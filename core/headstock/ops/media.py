"""What images add to a step: features in place of embeddings, positions on several axes.

Shapes: T tokens, D hidden size, M rows of the store of features, F features of a row, A axes,
L positions, C = rotated features of a head, C / 2 frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op

NO_FEATURES = -1
"""Among a step's feature rows: the token has none."""


@op()
def axis_angles(
    table_LC: Tensor, shifts_AT: Tensor, axis_F: Tensor, positions_T: Tensor | None
) -> Tensor:
    """Look up each token's cosines and sines, each frequency at the position on its own axis.

    Args:
        table_LC: Cosines, then sines, as in :func:`headstock.ops.rotary.rotate`. float32. [L, C]
        shifts_AT: What is added to a token's position on each axis; sums below 0, which only rows
            that are over have, count as 0. int32. [A, T]
        axis_F: Axis of each frequency. int64. [C / 2]
        positions_T: int64; None: zeros. [T]

    Returns:
        Cosines, then sines. float32. [T, C]

    Source:
        Wang et al. 2024, "Qwen2-VL", section 2.1: rotary embedding by time, height and width.
    """
    places_AT = shifts_AT.long()
    if positions_T is not None:
        places_AT = places_AT + positions_T
    places_TF = places_AT.clamp(min=0).index_select(0, axis_F).t()
    return table_LC.gather(0, torch.cat((places_TF, places_TF), dim=1))


@op()
def place_features(x_TD: Tensor, features_MF: Tensor, rows_T: Tensor) -> Tensor:
    """Put features in the place of some tokens' embeddings.

    Args:
        x_TD: Embeddings. [T, D]
        features_MF: The store; the first D features of a row count. [M, F]
        rows_T: Row of the store for each token; :data:`NO_FEATURES`: it keeps what it has.
            int32. [T]

    Returns:
        [T, D]
    """
    found_TD = features_MF[:, : x_TD.shape[1]].index_select(0, rows_T.clamp(min=0))
    return torch.where((rows_T >= 0)[:, None], found_TD, x_TD)


@op()
def replace_ids(ids_T: Tensor, rows_T: Tensor, *, other: int) -> Tensor:
    """Return token ids with another in the place of those that have features.

    Args:
        ids_T: int64. [T]
        rows_T: As in :func:`place_features`. int32. [T]
        other: The id.

    Returns:
        int64. [T]
    """
    return ids_T.masked_fill(rows_T >= 0, other)


@op()
def add_placed(x_TD: Tensor, features_MF: Tensor, rows_T: Tensor, *, offset: int) -> Tensor:
    """Add features to some tokens' hidden states.

    Args:
        x_TD: Hidden states. [T, D]
        features_MF: The store; D features of a row count, from ``offset`` on. [M, F]
        rows_T: As in :func:`place_features`. int32. [T]
        offset: First feature.

    Returns:
        [T, D]
    """
    size = x_TD.shape[1]
    found_TD = features_MF[:, offset : offset + size].index_select(0, rows_T.clamp(min=0))
    return torch.where((rows_T >= 0)[:, None], x_TD + found_TD, x_TD)


@op()
def store_features(x_NF: Tensor, rows_N: Tensor, features_MF: Tensor) -> Tensor:
    """Write rows into the store of features, at once or in place.

    Args:
        x_NF: [N, F]
        rows_N: Where they go, each once. int64. [N]
        features_MF: Written. [M, F]

    Returns:
        The store, written.
    """
    return features_MF.index_copy_(0, rows_N, x_NF)
