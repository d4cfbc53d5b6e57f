"""The formats of thoughts and calls that are known: those of plugins, and Headstock's own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from headstock.errors import PluginError
from headstock.text.parsers.parts import CallFormat, ReasoningFormat

PLUGIN, OWN = 100, 0
"""Priorities. A chat template is looked at for the marks of the highest first."""


class FormatRegistry:
    """What ``--reasoning-parser`` and ``--tool-call-parser`` can name, and ``auto`` finds."""

    def __init__(self) -> None:
        self._added: list[tuple[int, CallFormat | ReasoningFormat]] = []

    def add(self, format: CallFormat | ReasoningFormat, *, priority: int = PLUGIN) -> None:
        """Add a format.

        Args:
            format: Its name is what the flags call it.
            priority: The highest whose marks a chat template has is the template's.

        Raises:
            PluginError: It is no format, or its name is taken.
        """
        given = cast("object", format)
        if not isinstance(given, (CallFormat, ReasoningFormat)):
            raise PluginError(
                f"A plugin adds {format!r}, which is not a format.",
                remedy="Add a CallFormat or a ReasoningFormat of headstock.text.parsers.",
            )
        kind = type(format)
        if any(other.name == format.name and type(other) is kind for _, other in self._added):
            raise PluginError(
                f"Two plugins add a {kind.__name__} {format.name!r}.",
                remedy="Pass --disable-plugin for one of them.",
            )
        self._added.append((priority, format))

    @property
    def calls(self) -> tuple[CallFormat, ...]:
        """How models write calls, the highest priority first."""
        return tuple(each for each in self._ranked() if isinstance(each, CallFormat))

    @property
    def reasoning(self) -> tuple[ReasoningFormat, ...]:
        """How models write thoughts, the highest priority first."""
        return tuple(each for each in self._ranked() if isinstance(each, ReasoningFormat))

    @contextmanager
    def all_or_nothing(self) -> Generator[None]:
        """Take back what was added within the block if it raises."""
        before = list(self._added)
        try:
            yield
        except BaseException:
            self._added = before
            raise

    def _ranked(self) -> list[CallFormat | ReasoningFormat]:
        return [each for _, each in sorted(self._added, key=lambda pair: -pair[0])]


def add_own_formats(registry: FormatRegistry) -> None:
    """Add Headstock's own formats, those of the model families that are known."""
    from headstock.text.parsers.formats import CALL_FORMATS, REASONING_FORMATS

    for each in (*CALL_FORMATS, *REASONING_FORMATS):
        registry.add(each, priority=OWN)


def own_formats() -> FormatRegistry:
    """Return a registry with Headstock's own formats: what serves where no plugin is loaded."""
    registry = FormatRegistry()
    add_own_formats(registry)
    return registry
