"""Whether the model that a body names is the one that is served."""

from __future__ import annotations

from headstock.errors import RequestError
from headstock.server.model_card import ModelCard


def check_model(name: str | None, card: ModelCard) -> None:
    """Refuse a model that is not the served one.

    Raises:
        RequestError: ``name`` is another's; "default" and none at all are fine.
    """
    if name not in (None, "", "default", card.name):
        raise unknown_model(name or "", card)


def unknown_model(name: str, card: ModelCard) -> RequestError:
    """Return the error for a model that this server does not have."""
    return RequestError(
        f"The model {name[:128]!r} does not exist; this server has {card.name!r}.",
        remedy="Use its name, or leave model out.",
        field="model",
        code="model_not_found",
    )
