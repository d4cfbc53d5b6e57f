"""Where things are that plugins name, and that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from headstock.errors import PluginError
from headstock.plugins.guard import Failure, describe, guarded

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from headstock.plugins.loader import Plugins


@dataclass(slots=True)
class Places:
    """What plugins named, in the order they did so; a registry says of what kind it is."""

    kind: ClassVar[str]
    """What is named, in the singular."""

    _places: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def names(self) -> list[str]:
        """Names, the first that was registered first."""
        return list(self._places)

    def add(self, name: str, place: str) -> None:
        """Name one; the registry says what its place is. Imports nothing.

        Args:
            name: What users call it.
            place: ``module:function``.

        Raises:
            PluginError: The name is taken, or the place is no ``module:function``.
        """
        if name in self._places:
            raise PluginError(
                f"Two plugins register a {self.kind} {name!r}.",
                remedy="Pass --disable-plugin for one of them.",
            )
        module, separator, function = place.partition(":")
        if not (module and separator and function):
            raise PluginError(
                f"{self.kind.capitalize()} {name!r} is at {place!r}.",
                remedy="Its plugin must register it as module:function.",
            )
        self._places[name] = place

    def place(self, name: str) -> str | None:
        """Return where one is, or None."""
        return self._places.get(name)

    def load(self, name: str) -> Any:
        """Import one and return it.

        Raises:
            PluginError: It is not named, or does not import.
        """
        place = self._places.get(name)
        if place is None:
            raise PluginError(
                f"No plugin names a {self.kind} {name!r}.",
                remedy=f"There are: {', '.join(self._places) or 'none'}.",
            )
        module, _, function = place.partition(":")
        loaded = guarded(lambda: getattr(importlib.import_module(module), function))
        if isinstance(loaded, Failure):
            raise PluginError(
                f"The {self.kind} {name!r} at {place} does not import: {loaded.reason}.",
                remedy="Reinstall the plugin that names it, or pass --disable-plugin for it.",
            )
        return loaded.value

    @contextmanager
    def all_or_nothing(self) -> Generator[None]:
        """Take back what was named within the block if it raises."""
        before = dict(self._places)
        try:
            yield
        except BaseException:
            self._places = before
            raise


class Fillable(Protocol):
    """A registry that a hook fills."""

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """Take back what was added within the block if it raises."""
        ...


def ask_each(plugins: Plugins, hook: str, registry: Fillable) -> list[str]:
    """Have every loaded plugin fill ``registry``, in a process without a backend.

    Returns:
        A line for each plugin that raised, and was passed over with all that it added.
    """
    failures: list[str] = []
    for record in plugins.loaded:
        try:
            with registry.all_or_nothing():
                plugins.call(record, hook, registry=registry)
        except Exception as error:  # noqa: BLE001 - the boundary to foreign code, as in `guarded`
            reason = describe(error)
            failures.append(f"plugin {record.name} ({record.dist}) is passed over: {reason}")
    return failures
