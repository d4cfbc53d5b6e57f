"""How a process hands its settings to one that it starts: as text, in one argument.

Engine settings hold no secrets: API keys are the server's.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headstock.config import EngineSettings, Loaded, Origin, Source


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
