"""How much room for adapters a model is built with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from headstock.errors import ConfigError
from headstock.graph.lora import AdapterSpace
from headstock.lora.peft import AdapterSettings, read_settings

DEFAULT_PLACES = 8
DEFAULT_RANK = 16
ALL = "all"


def adapter_space(
    paths: Sequence[str],
    num_places: int | None,
    max_rank: int | None,
    targets: Sequence[str],
) -> AdapterSpace | None:
    """Return the room that is asked for, or follows from the adapters in ``paths``.

    Args:
        paths: Folders of the adapters that are loaded at the start.
        num_places: Adapters on the device at once; None: some, if there are any at all.
        max_rank: Largest rank; None: the largest of those in ``paths``.
        targets: Last names of modules, or ``all``; (): those of the adapters in ``paths``.

    Returns:
        The room; None: no adapters are wanted.

    Raises:
        AdapterError: A configuration in ``paths`` cannot be read.
        ConfigError: An adapter asks for more than ``max_rank``.
    """
    if not paths and not num_places:
        return None
    found = {path: read_settings(Path(path)) for path in paths}
    for path, settings in found.items():
        if max_rank is not None and settings.max_rank > max_rank:
            raise ConfigError(
                f"max_lora_rank is {max_rank}; the adapter in {path} has rank {settings.max_rank}.",
                remedy=f"Set --max-lora-rank to {settings.max_rank}, or drop it.",
            )
    if max_rank is None:
        max_rank = max((settings.max_rank for settings in found.values()), default=DEFAULT_RANK)
    return AdapterSpace(
        num_places=num_places or DEFAULT_PLACES,
        max_rank=max_rank,
        targets=_targets(targets, found.values()),
    )


def _targets(asked: Sequence[str], found: Iterable[AdapterSettings]) -> frozenset[str] | None:
    """Return the last names of the modules that take adapters; None: of all."""
    if ALL in asked:
        return None
    if asked:
        return frozenset(asked)
    names: set[str] = set()
    for settings in found:
        if not isinstance(settings.target_modules, list):
            return None  # a regular expression: its modules are not looked for
        names |= {name.rpartition(".")[2] for name in settings.target_modules}
    return frozenset(names) or None
