"""The files of the model that the settings name, and how long its requests may be."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from headstock.checkpoint import ModelFiles, resolve
from headstock.checkpoint.files import Progress
from headstock.config import EngineSettings, ModelSettings
from headstock.errors import ConfigError
from headstock.plugins.loader import REFERENCE, discover
from headstock.plugins.places import ask_each
from headstock.plugins.quantization import QuantizationRegistry

log = logging.getLogger(__name__)
HOOK = "headstock_register_quantization"
UNBOUNDED = 1 << 31


def find_model(
    settings: EngineSettings, *, needs_weights: bool = True, progress: Progress | None = None
) -> ModelFiles:
    """Return the files of the model that ``settings`` name.

    Args:
        settings: Those of the model, and the disabled plugins.
        needs_weights: False where none are read, whatever ``--load-format`` is.
        progress: Called with the progress of a download.

    Raises:
        HeadstockError: As :func:`headstock.checkpoint.resolve` does.
    """
    wanted = settings.model
    return resolve(
        wanted.model,
        wanted.revision,
        needs_weights=needs_weights and wanted.load_format != "dummy",
        progress=progress,
        formats=lambda: installed_formats(settings.device.disable_plugin),
    )


def installed_formats(disabled: Collection[str] = ()) -> QuantizationRegistry:
    """Ask all plugins but the disabled; one that raises is passed over, and logged.

    Backends are not asked: a folder is read alike in processes without one.
    """
    registry = QuantizationRegistry()
    for failure in ask_each(discover(backend=REFERENCE, disabled=disabled), HOOK, registry):
        log.warning("The %s", failure)
    return registry


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
        ConfigError: ``max_model_len`` is over what the model was made for, or no file has that.
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
