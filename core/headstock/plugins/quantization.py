"""Where readers of quantised folders and canonical layouts are: named by plugins."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from headstock.errors import PluginError
from headstock.ops.layouts import CanonicalLayout
from headstock.plugins.places import Places

OF = "::"
"""Between a package and the name of its layout, as in names of ops."""


class LayoutPlaces(Places):
    """The canonical layouts that plugins named, beside :data:`headstock.ops.linear.LAYOUTS`."""

    __slots__ = ()
    kind = "canonical layout"

    def load(self, name: str) -> CanonicalLayout:
        """Import one and return it.

        Raises:
            PluginError: It is not named, does not import, or is no layout of that name.
        """
        layout = super().load(name)
        if not isinstance(layout, CanonicalLayout) or layout != name:
            raise PluginError(
                f"The {self.kind} {name!r} at {self.place(name)} is {layout!r}.",
                remedy=f"It must be a CanonicalLayout with the name {name!r}.",
            )
        return layout


@dataclass(slots=True)
class QuantizationRegistry(Places):
    """The readers that plugins named, by ``quant_method`` of ``quantization_config``.

    The function at a place is a :data:`headstock.checkpoint.formats.Join`. What multiplies the
    layout that it makes is no concern of it: each provider of ``linear`` and ``experts`` says which
    layouts it takes, in its ``Requires``; the reference takes all of them.

    Attributes:
        layouts: The layouts that plugins named.
    """

    kind = "checkpoint format"

    layouts: LayoutPlaces = field(default_factory=LayoutPlaces)

    @property
    def layout_names(self) -> list[str]:
        """Names of the layouts that plugins named."""
        return self.layouts.names

    def add_layout(self, name: str, place: str) -> None:
        """Name a canonical layout. Imports nothing.

        Args:
            name: ``package::name``.
            place: ``module:attribute`` of a :class:`headstock.ops.layouts.CanonicalLayout`.

        Raises:
            PluginError: The name is taken or of another package's, or the place is none.
        """
        package, separator, rest = name.partition(OF)
        if not (separator and rest) or package != place.partition(":")[0].partition(".")[0]:
            raise PluginError(
                f"A plugin registers a canonical layout {name!r} at {place!r}.",
                remedy=f"Its name must be package{OF}name, of the package that has it.",
            )
        self.layouts.add(name, place)

    @contextmanager
    def all_or_nothing(self) -> Generator[None]:
        """Take back what was named within the block if it raises."""
        with Places.all_or_nothing(self), self.layouts.all_or_nothing():
            yield
