"""What pooled requests yield, as numbers. No event loop, no protocol."""

from __future__ import annotations

import base64
import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class TokenRows:
    """What a text's tokens yielded.

    Attributes:
        token_ids: The tokens that something is given of.
        rows: A vector of each, or its scores.
    """

    token_ids: list[int]
    rows: list[list[float]]


def token_rows(completion: Completion, card: ModelCard) -> TokenRows:
    """Return what a completion yielded of each token: vectors, or scores.

    A model that scores steps has those of the tokens that end one. Of others the token that begins
    the text has no vector, and those that begin and end it no scores.

    Args:
        completion: One that has ended, of a request for something of each token.
        card: The served model.
    """
    values = vector_of(completion, card)
    ids = completion.submit.prompt_ids
    width = len(values) // len(ids)
    if card.scores_steps:
        kept = [n for n, token in enumerate(ids) if card.step_id in (None, token)]
    elif completion.submit.pool == "token_embed":
        kept = list(range(int(ids[0] == card.first_id), len(ids)))
    else:
        marks = {card.first_id, *card.eos_ids}
        kept = [n for n, token in enumerate(ids) if token not in marks]
    rows = [values[n * width : (n + 1) * width].tolist() for n in kept]
    if card.scores_steps and width > 1:
        rows = [softmax(row) for row in rows]
    return TokenRows([ids[n] for n in kept], rows)


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
