"""Which architectures there are, and their classes: imported when one is asked for, not before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from headstock.errors import PluginError, UnsupportedError, did_you_mean
from headstock.plugins.guard import Failure, guarded

MODELS = "headstock.models"


class ModelRegistry:
    """Architectures by the name that a checkpoint's ``config.json`` gives them.

    Args:
        entry_points: Of the group ``headstock.models``; the installed ones when not given.
        extra: Classes beside them, by architecture: for tests.
    """

    def __init__(
        self,
        entry_points: Iterable[metadata.EntryPoint] | None = None,
        extra: Mapping[str, type[Any]] | None = None,
    ) -> None:
        self._found: dict[str, list[metadata.EntryPoint]] = {}
        self._extra = dict(extra or {})
        found = metadata.entry_points(group=MODELS) if entry_points is None else entry_points
        for entry_point in found:
            self._found.setdefault(entry_point.name, []).append(entry_point)

    @property
    def names(self) -> list[str]:
        """Every architecture, sorted. Imports nothing."""
        return sorted({*self._found, *self._extra})

    def choose(self, architectures: Sequence[str]) -> str:
        """Return the first of a checkpoint's ``architectures`` that is known.

        Raises:
            UnsupportedError: None is; the message suggests the closest.
        """
        known = self.names
        for name in architectures:
            if name in known:
                return name
        asked = ", ".join(architectures) or "none"
        closest = did_you_mean(architectures[0], known) if architectures else ""
        raise UnsupportedError(
            f"The model's architecture is {asked}, which no installed package has.{closest}",
            remedy=f"Known: {', '.join(known)}. docs/adding-a-model.md tells how to add one.",
        )

    def load(self, architecture: str) -> type[Any]:
        """Import the class of ``architecture``.

        Raises:
            UnsupportedError: It is not known.
            PluginError: Two distributions bring it, or its module does not import.
        """
        name = self.choose([architecture])
        if name in self._extra:
            return self._extra[name]
        entry_point = self._only(name)
        loaded = guarded(entry_point.load)
        if isinstance(loaded, Failure):
            dist = _dist(entry_point)
            raise PluginError(
                f"Architecture {name} of {dist} does not import: {loaded.reason}.",
                remedy=f"Reinstall {dist}.",
            )
        return loaded.value

    def _only(self, name: str) -> metadata.EntryPoint:
        entry_points = self._found[name]
        if len(entry_points) > 1:
            dists = sorted(_dist(e) for e in entry_points)
            raise PluginError(
                f"Architecture {name} is brought by {' and '.join(dists)}.",
                remedy="Uninstall all but one of them.",
            )
        return entry_points[0]


def _dist(entry_point: metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else "an unknown distribution"
