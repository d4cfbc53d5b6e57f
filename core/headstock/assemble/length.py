"""How long a request may be: what the model was made for, or less."""

from __future__ import annotations

from collections.abc import Sequence

from headstock.checkpoint import ModelFiles
from headstock.config import ModelSettings
from headstock.errors import ConfigError

UNBOUNDED = 1 << 31


def max_length(
    files: ModelFiles, settings: ModelSettings, keys: Sequence[str], spare: int = 0
) -> int:
    """Return the longest request to serve. Tokens.

    Args:
        files: The model's.
        settings: The operator's wish.
        keys: Where the model's class looks for what it was made for.
        spare: Positions of those that no request uses.

    Raises:
        ConfigError: ``max_model_len`` is over what the model was made for, or nobody says.
    """
    positions, wanted = files.max_length(keys), settings.max_model_len
    own = None if positions is None else positions - spare
    if own is None and wanted is None:
        raise ConfigError(
            f"{files.name} does not say how long its requests may be.",
            remedy="Set --max-model-len.",
        )
    if own is not None and wanted is not None and wanted > own:
        raise ConfigError(
            f"max_model_len is {wanted:,}; the model was made for {own:,} tokens.",
            remedy=f"Set --max-model-len to {own} or less.",
        )
    return wanted or _made_for(files, own) or 0


def length_bound(files: ModelFiles, settings: ModelSettings) -> int:
    """Return what no request is longer than, without the model's class: the engine knows better."""
    return settings.max_model_len or _made_for(files, files.max_length()) or UNBOUNDED


def _made_for(files: ModelFiles, own: int | None) -> int | None:
    """Return the default: an embedding model may have been trained on less than it can take."""
    trained = files.sentence.max_length if files.sentence is not None else None
    return min(own, trained) if own and trained else own or trained
