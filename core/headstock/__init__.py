"""Headstock: one serving engine for language models, any accelerator.

``import headstock`` is cheap: it loads no tensor library. :class:`Engine` does when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headstock.assemble.offline import Engine

__version__ = "0.1.0"
__all__ = ["Engine", "__version__"]


def __getattr__(name: str) -> object:
    """Import :class:`Engine` when somebody asks for it."""
    if name == "Engine":
        from headstock.assemble.offline import Engine

        return Engine
    raise AttributeError(f"module 'headstock' has no attribute {name!r}")
