"""The files of the model that the settings name, in any format that an installed plugin reads."""

from __future__ import annotations

import logging
from collections.abc import Collection

from headstock.checkpoint import resolve
from headstock.checkpoint.files import ModelFiles, Progress
from headstock.config import EngineSettings
from headstock.plugins.loader import REFERENCE, discover
from headstock.plugins.places import ask_each
from headstock.plugins.quantization import QuantizationRegistry

log = logging.getLogger(__name__)
HOOK = "headstock_register_quantization"


def find_model(
    settings: EngineSettings, *, needs_weights: bool = True, progress: Progress | None = None
) -> ModelFiles:
    """Return the files of the model that ``settings`` name.

    Args:
        settings: Those of the model, and the disabled plugins.
        needs_weights: False where none are read, whatever ``--load-format`` is.
        progress: Told of a download.

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
