"""How a process hands its settings to one that it starts: as text, in one argument.

Engine settings hold no secrets: API keys are the server's. No tensor library is loaded here: the
API process, which starts the engine, does without one.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import msgspec

from headstock.config import EngineSettings, Loaded, Origin, Source

ENGINE_MODULE = "headstock.assemble.engine_process"


def engine_command(loaded: Loaded[Any], address: str) -> list[str]:
    """Return the command line of an engine process that connects to ``address``."""
    given = encode_settings(loaded)
    return [sys.executable, "-m", ENGINE_MODULE, address, str(os.getpid()), given]


def encode_settings(loaded: Loaded[Any]) -> str:
    """Return the engine's settings, and which of them the operator set."""
    settings = msgspec.convert(
        {name: getattr(loaded.settings, name) for name in EngineSettings.__struct_fields__},
        EngineSettings,
    )
    given = [path for path, origin in loaded.origins.items() if origin.source is not Source.BACKEND]
    return msgspec.json.encode((settings, given)).decode()


def decode_settings(text: str) -> Loaded[EngineSettings]:
    """Return what :func:`encode_settings` was given."""
    settings, given = msgspec.json.decode(text, type=tuple[EngineSettings, list[str]])
    return Loaded(settings, {path: Origin(Source.CALL, path) for path in given})
