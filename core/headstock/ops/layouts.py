"""What a canonical layout is: the tensors of a weight, and the functions between them. No torch.

Shapes: O output features, I input features, G groups along I.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch import Tensor

FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Magnitudes of float4_e2m1 by its low three bits."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One of the tensors that a weight has in a layout.

    Attributes:
        dtype: Of its elements, as torch names it; "": the model's.
        features: Input features that an element holds: the tensor is [O, I / features]. 0: an
            element belongs to a group of them, [O, G].
    """

    dtype: str
    features: int = 1


class CanonicalLayout(str):
    """A layout, as a value that equals its name, like a member of a ``StrEnum``.

    What an element of a weight is may depend on what holds the element and on its group alone, so
    that rows, and runs of whole groups, can be cut out, and a group be cut in smaller ones that
    have its parts.

    Args:
        name: Its name; of a package's own layout ``package::name``, as of ops.
        parts: The tensors, by name. Any but ``dense`` has groups of one size in a weight.
        dequantize: Where the reference is, as ``module:function``: takes the tensors of some rows
            and returns their weight in float32 [O, I]; ``dense`` alone in the dtype that it has.
        quantize: Where the way back is, likewise: takes a float32 weight [O, I] and a group size,
            which divides I, and returns the tensors.

    Attributes:
        parts: As given.
        unit: The fewest input features that a group can have, and their multiples.
    """

    __slots__ = ("_dequantize", "_quantize", "parts", "unit")

    parts: Mapping[str, Stored]
    unit: int

    def __new__(
        cls, name: str, *, parts: Mapping[str, Stored], dequantize: str, quantize: str
    ) -> Self:
        """Return the layout; imports neither function."""
        layout = super().__new__(cls, name)
        layout.parts = parts
        layout.unit = max(stored.features for stored in parts.values())
        layout._dequantize, layout._quantize = dequantize, quantize
        return layout

    def __getnewargs_ex__(self) -> tuple[tuple[str], dict[str, Any]]:
        """Return what a copy is made with."""
        functions = {"dequantize": self._dequantize, "quantize": self._quantize}
        return (str(self),), {"parts": self.parts, **functions}

    @property
    def has_groups(self) -> bool:
        """Whether input features of a weight are in groups of one size: in all but ``dense``."""
        return self != "dense"

    def load_dequantize(self) -> Callable[[Mapping[str, Tensor]], Tensor]:
        """Import the reference, and return it."""
        return _function(self._dequantize)

    def load_quantize(self) -> Callable[[Tensor, int], dict[str, Tensor]]:
        """Import the way back, and return it."""
        return _function(self._quantize)


def _function(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
