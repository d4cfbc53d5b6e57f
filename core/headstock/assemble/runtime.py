"""The engine under SGLang's name for it, so that its programs port by changing the import."""

from __future__ import annotations

from typing import Any

from headstock.assemble.offline import Engine


class Runtime(Engine):
    """An engine in this process, made as SGLang's ``Runtime`` is.

    Args:
        model_path: As ``model`` of :class:`Engine`.
        settings: As of :class:`Engine`.
    """

    def __init__(self, model_path: str, **settings: Any) -> None:
        super().__init__(model=model_path, **settings)
