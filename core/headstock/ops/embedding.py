"""Ids to features where positions are learned, or some ids have features of another table.

Shapes: T tokens, D features, V ids, L places, K ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.base import op


@op()
def embed_places(
    ids_T: Tensor,
    positions_T: Tensor,
    words_VD: Tensor,
    places_LD: Tensor,
    types_KD: Tensor,
    *,
    first_place: int,
) -> Tensor:
    """Return the sum of what a token's id, its place in the text and its type stand for.

    Args:
        ids_T: Id plus type times V. int64. [T]
        positions_T: Of each token in its text. int64. [T]
        words_VD: Of ids. [V, D]
        places_LD: Of places. [L, D]
        types_KD: Of types, in the same dtype. [types, D]
        first_place: Row of ``places_LD`` for position 0.

    Returns:
        [T, D]
    """
    num_ids = words_VD.shape[0]
    words_TD = words_VD[ids_T % num_ids]
    types_TD = types_KD[ids_T.div(num_ids, rounding_mode="floor")]
    return words_TD + types_TD + places_LD[positions_T + first_place]


@op()
def known_ids(ids_T: Tensor, *, size: int) -> Tensor:
    """Return ids with 0 in the place of those that a table of ``size`` rows has none for.

    Args:
        ids_T: int64. [T]
        size: Rows.

    Returns:
        int64. [T]
    """
    return ids_T.masked_fill(ids_T >= size, 0)


@op()
def put_rows(x_TD: Tensor, ids_T: Tensor, rows_KD: Tensor, *, first: int) -> Tensor:
    """Put rows of a table in the place of the embeddings of some ids.

    Args:
        x_TD: Embeddings. [T, D]
        ids_T: int64. [T]
        rows_KD: Of ``first`` and the ids behind it, in the same dtype. [K, D]
        first: An id.

    Returns:
        [T, D]
    """
    places_T = ids_T - first
    count = rows_KD.shape[0]
    found_TD = rows_KD.index_select(0, places_T.clamp(0, count - 1))
    is_there_T = (places_T >= 0) & (places_T < count)
    return torch.where(is_there_T[:, None], found_TD, x_TD)
