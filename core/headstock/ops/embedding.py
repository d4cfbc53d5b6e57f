"""Ids to features where positions are learned. Shapes: T tokens, D features, V ids, L places."""

from __future__ import annotations

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
