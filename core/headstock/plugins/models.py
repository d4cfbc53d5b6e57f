"""Which architectures there are, and their classes: imported when one is asked for, not before."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from headstock.errors import PluginError, UnsupportedError, did_you_mean
from headstock.plugins.guard import Failure, describe, guarded

if TYPE_CHECKING:
    from headstock.plugins.loader import Plugins

MODELS = "headstock.models"
HOOK = "headstock_register_models"


@dataclass(frozen=True, slots=True)
class _Brought:
    """One way to come by a class: who brings it, and what imports it."""

    dist: str
    load: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class ChosenModel:
    """The class that serves a checkpoint.

    Attributes:
        architecture: The name in the checkpoint's configuration.
        dist: The distribution that brings the class.
        is_fallback: Whether the class serves any architecture that no package has a file for.
    """

    architecture: str
    dist: str
    is_fallback: bool = False


class ModelRegistry:
    """Architectures by the name that a checkpoint's ``config.json`` gives them.

    Args:
        entry_points: Of the group ``headstock.models``; the installed ones when not given.
        extra: Classes beside them, by architecture: for tests.

    Attributes:
        failures: Why plugins are passed over that would have brought architectures, a line each.
    """

    def __init__(
        self,
        entry_points: Iterable[metadata.EntryPoint] | None = None,
        extra: Mapping[str, type[Any]] | None = None,
    ) -> None:
        self._found: dict[str, list[_Brought]] = {}
        self._fallbacks: list[_Brought] = []
        self._extra = dict(extra or {})
        self._dist = "an unknown distribution"
        self.failures: list[str] = []
        found = metadata.entry_points(group=MODELS) if entry_points is None else entry_points
        for entry_point in found:
            brought = _Brought(_dist(entry_point), entry_point.load)
            self._found.setdefault(entry_point.name, []).append(brought)

    @classmethod
    def of_plugins(cls, plugins: Plugins) -> ModelRegistry:
        """Return what entry points name and what the hooks of loaded plugins register.

        A plugin whose hook raises is passed over, with all that it registered, and noted in
        :attr:`failures`.
        """
        registry = cls()
        for record in plugins.loaded:
            with registry._crediting(record.name, record.dist):
                plugins.call(record, HOOK, registry=registry)
        return registry

    def add(self, architecture: str, target: str) -> None:
        """Register an architecture. Imports nothing.

        Args:
            architecture: As ``config.json`` names it, such as ``LlamaForCausalLM``.
            target: Its class, as ``package.module:Class``.

        Raises:
            PluginError: ``target`` is not of that form.
        """
        self._found.setdefault(architecture, []).append(_Brought(self._dist, _importer(target)))

    def add_fallback(self, target: str) -> None:
        """Register the class that serves architectures which no package has a file for.

        Args:
            target: The class, as ``package.module:Class``; it refuses what it cannot serve.

        Raises:
            PluginError: ``target`` is not of that form.
        """
        self._fallbacks.append(_Brought(self._dist, _importer(target)))

    @property
    def names(self) -> list[str]:
        """Every architecture, sorted. Imports nothing."""
        return sorted({*self._found, *self._extra})

    def names_beside(self, dist: str) -> list[str]:
        """Return the architectures that others than ``dist`` bring, sorted. Imports nothing."""
        return sorted(
            name
            for name, brought in self._found.items()
            if any(one.dist != dist for one in brought)
        )

    @property
    def has_fallback(self) -> bool:
        """Whether there is a class for architectures without one of their own."""
        return bool(self._fallbacks)

    def choose(self, architectures: Sequence[str]) -> ChosenModel:
        """Return who serves the first of a checkpoint's ``architectures`` that is known.

        Where none is, and there is a fallback, that serves the first. Imports nothing.

        Raises:
            UnsupportedError: No package serves any; the message suggests the closest.
            PluginError: Two distributions bring it.
        """
        known = self.names
        for name in architectures:
            if name in self._extra:
                return ChosenModel(name, "extra")
            if name in known:
                return ChosenModel(name, self._only(name, self._found[name]).dist)
        if architectures and self._fallbacks:
            brought = self._only("the fallback", self._fallbacks)
            return ChosenModel(architectures[0], brought.dist, is_fallback=True)
        asked = ", ".join(architectures) or "none"
        closest = did_you_mean(architectures[0], known) if architectures else ""
        passed_over = "".join(f" The {failure}" for failure in self.failures)
        raise UnsupportedError(
            f"The model's architecture is {asked}, which no installed package has.{closest}"
            f"{passed_over}",
            remedy=f"Known: {', '.join(known)}. docs/adding-a-model.md tells how to add one.",
        )

    def load(self, architecture: str) -> type[Any]:
        """Import the class that serves ``architecture``.

        Raises:
            UnsupportedError: No package does.
            PluginError: Two distributions bring it, or its module does not import.
        """
        chosen = self.choose([architecture])
        if architecture in self._extra:
            return self._extra[architecture]
        brought = self._fallbacks if chosen.is_fallback else self._found[architecture]
        loaded = guarded(brought[0].load)
        if isinstance(loaded, Failure):
            raise PluginError(
                f"Architecture {architecture} of {chosen.dist} does not import: {loaded.reason}.",
                remedy=f"Reinstall {chosen.dist}.",
            )
        return loaded.value

    def _only(self, name: str, brought: Sequence[_Brought]) -> _Brought:
        if len(brought) > 1:
            dists = sorted(one.dist for one in brought)
            raise PluginError(
                f"Architecture {name} is brought by {' and '.join(dists)}.",
                remedy="Uninstall all but one of them.",
            )
        return brought[0]

    @contextmanager
    def _crediting(self, plugin: str, dist: str) -> Generator[None]:
        """Say of what is added within the block that ``dist`` brings it; nothing if it raises."""
        found = {name: list(brought) for name, brought in self._found.items()}
        fallbacks, self._dist = list(self._fallbacks), dist
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the boundary to foreign code, as in `guarded`
            self._found, self._fallbacks = found, fallbacks
            reason = describe(error)
            self.failures.append(f"plugin {plugin} ({dist}) is passed over: {reason}")


def installed_models(disabled: Collection[str] = ()) -> ModelRegistry:
    """Return the architectures of all that is installed, in a process without a backend.

    Args:
        disabled: Plugins not to import, as in :func:`headstock.plugins.loader.discover`.
    """
    from headstock.plugins.loader import REFERENCE, discover

    return ModelRegistry.of_plugins(discover(backend=REFERENCE, disabled=disabled))


def _importer(target: str) -> Callable[[], Any]:
    module, _, name = target.partition(":")
    if not (module and name):
        raise PluginError(
            f"A model's class is given as {target!r}.", remedy="Write package.module:Class."
        )
    return lambda: getattr(importlib.import_module(module), name)


def _dist(entry_point: metadata.EntryPoint) -> str:
    return entry_point.dist.name if entry_point.dist else "an unknown distribution"
