"""What pooled requests yield, as numbers. No event loop, no protocol."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence

from headstock.errors import RequestError
from headstock.server.completion import Completion
from headstock.server.model_card import ModelCard


def vector_of(
    completion: Completion, card: ModelCard, dimensions: int | None = None
) -> array[float]:
    """Return what a pooled completion yielded: float32.

    Args:
        completion: One that has ended.
        card: The served model.
        dimensions: Elements to keep, the first ones; vectors of length 1 are made so again.
    """
    vector = array("f")
    vector.frombytes(completion.vector)
    if sys.byteorder == "big":
        vector.byteswap()
    if dimensions is None or dimensions >= len(vector):
        return vector
    vector = vector[:dimensions]
    if not card.is_normalized:
        return vector
    length = math.sqrt(math.fsum(x * x for x in vector)) or 1.0
    return array("f", [x / length for x in vector])


def check_dimensions(dimensions: int | None, card: ModelCard) -> None:
    """Refuse a size that vectors cannot be cut to.

    Raises:
        RequestError: Naming the sizes that are allowed.
    """
    if dimensions is None or dimensions == card.embedding_size:
        return
    allowed = ", ".join(map(str, card.dimensions)) or f"1 to {card.embedding_size}"
    is_known = dimensions in card.dimensions or not card.dimensions
    if not is_known or not 1 <= dimensions <= card.embedding_size:
        raise RequestError(
            f"dimensions is {dimensions}; the vectors of {card.name!r} have {card.embedding_size}"
            " elements.",
            remedy=f"Use one of: {allowed}.",
            field="dimensions",
        )


def as_base64(vector: array[float]) -> str:
    """Return ``vector`` as base64 of little-endian float32."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode("ascii")


def similarity(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors; 0 where one of them is zero."""
    lengths = math.sqrt(math.fsum(x * x for x in left) * math.fsum(x * x for x in right))
    return math.fsum(map(float.__mul__, left, right)) / lengths if lengths else 0.0


def sigmoid(value: float) -> float:
    """Return the logistic function of ``value``."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    grown = math.exp(value)
    return grown / (1 + grown)


def softmax(values: Sequence[float]) -> list[float]:
    """Return the probabilities that ``values`` are the logarithms of, up to a constant."""
    most = max(values)
    powers = [math.exp(value - most) for value in values]
    total = math.fsum(powers)
    return [power / total for power in powers]
