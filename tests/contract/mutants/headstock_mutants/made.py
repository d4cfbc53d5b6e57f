"""Every mutation as a plugin: ``headstock_mutants.made:NAME``; ``unchanged`` is the right one."""

from __future__ import annotations

from typing import Any

from headstock_mutants.plugin import Mutant


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return Mutant(name)
