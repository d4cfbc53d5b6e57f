"""An engine in this process, for the commands that need no server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.cli.banner import Banner
from headstock.config import EngineSettings, Loaded
from headstock.observe.log import set_up_logging

if TYPE_CHECKING:
    from headstock import Engine


def open_engine(loaded: Loaded[EngineSettings]) -> Engine:
    """Start an engine as the settings say, and show how far it is on standard error.

    Raises:
        HeadstockError: The model cannot be served here with these settings.
    """
    log = loaded.settings.log
    set_up_logging(log.log_level, log.log_format)
    values = loaded.values
    given = {path.partition(".")[2]: values[path] for path in loaded.origins}
    from headstock import Engine

    banner = Banner()
    try:
        return Engine(report=banner.progress, **given)
    finally:
        banner.finish()
