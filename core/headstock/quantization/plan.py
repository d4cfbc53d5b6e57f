"""Decides the layout that each weight of a model is kept in."""

from __future__ import annotations

import enum
import math
from collections.abc import Collection
from dataclasses import dataclass

from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import DENSE, FP8_GROUP, INT4_GROUP, INT8_GROUP, MXFP4

GROUP_UNIT = 8
"""Groups that are cut smaller are of a multiple of this: else scales outweigh their values."""
GROUP_SIZE = 32
"""Input features that share a scale when we quantise: as fine as the GGUF blocks are."""
FP8_GROUP_SIZE = 128
"""Likewise to 8 bits of floating point: what tensor cores scale by."""


class Role(enum.Enum):
    """What a checkpoint tensor is to its layer; decides how small it may be made."""

    MATRIX = "matrix"
    """Weight of a matrix product: whatever the operator asks."""
    EMBEDDING = "embedding"
    """Embedding table or output layer: int8 at most, since 4 bits show in every logit."""
    SCALE = "scale"
    """Weight of a norm: never quantised. Ones when random."""
    BIAS = "bias"
    """Never quantised. Zeros when random."""
    ROUTER = "router"
    """Chooses experts: never quantised, since a near tie would go the other way."""
    WHOLE = "whole"
    """Small, or looked up by place: never quantised."""
    ABSORBED = "absorbed"
    """What heads make of a latent: kept dense, since it is multiplied from either side."""
    IDS = "ids"
    """Whole numbers, such as which experts a token goes to. They count up from 0 when random."""
    UNUSED = "unused"
    """Known to be in some checkpoints, and not needed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A canonical layout and its group size; 0 for dense."""

    name: CanonicalLayout = DENSE
    group_size: int = 0


def layout_of_share(stored: Layout, in_features: int) -> Layout:
    """Return the layout of some neighbouring input features of a weight.

    Smaller groups than those of ``stored`` where these are no whole number of them: the parts of a
    group have the scale that it had.

    Args:
        stored: Of the whole weight.
        in_features: Of the share, which begins at a multiple of them.
    """
    if not stored.group_size:
        return stored
    return Layout(stored.name, math.gcd(stored.group_size, in_features))


def shared_layout(layouts: Collection[Layout]) -> Layout:
    """Return a layout for weights that one provider takes: dense where only that is one."""
    group_size = math.gcd(*(layout.group_size for layout in layouts))
    names = {layout.name for layout in layouts}
    name = next(iter(names))
    is_cut = len(set(layouts)) > 1 and group_size % math.lcm(GROUP_UNIT, name.unit)
    return Layout() if len(names) > 1 or is_cut else Layout(name, group_size)


def choose_layout(role: Role, stored: Layout, in_features: int, asked: str | None) -> Layout:
    """Return what a weight is kept in.

    A checkpoint keeps its own layout unless the operator asks for another. Weights whose input
    features on this rank do not divide into groups stay as they are.

    Args:
        role: What the weight is for.
        stored: How the checkpoint has it.
        in_features: On this rank.
        asked: ``--quantization``: ``int8``, ``int4``, ``fp8``, ``none`` or None.
    """
    if asked == "fp8" and role is Role.MATRIX and stored.name == DENSE:
        return stored if in_features % FP8_GROUP_SIZE else Layout(FP8_GROUP, FP8_GROUP_SIZE)
    if asked not in ("int8", "int4") or role not in (Role.MATRIX, Role.EMBEDDING):
        return stored
    if stored.name == MXFP4 and asked == "int4":
        return stored
    wanted = INT4_GROUP if asked == "int4" and role is Role.MATRIX else INT8_GROUP
    if stored.name == wanted or in_features % GROUP_SIZE:
        return stored
    if stored.name == INT4_GROUP and role is Role.EMBEDDING:
        return stored
    return Layout(wanted, GROUP_SIZE)
