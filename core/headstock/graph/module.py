"""Modules, which are plain objects, and layers: the modules that own checkpoint tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headstock.errors import UnsupportedError
from headstock.graph.source import Source
from headstock.quantization.plan import Layout, Role

if TYPE_CHECKING:
    from torch import Tensor


class Module:
    """A part of a model. Its parts are its attributes, and the modules in its lists.

    The path of attribute names, joined by dots, is the prefix of the checkpoint names of the
    layers below: ``model.layers.0.self_attn.`` for a layer in ``self.model.layers[0].self_attn``.

    Attributes:
        alias: What stands in checkpoint names instead of its attribute's name; "": that does.
    """

    alias: str = ""
    forward: Callable[..., Any]
    """Computes; touches tensors only through ops and views."""

    def __call__(self, *args: Any) -> Any:
        """Run the forward pass."""
        return self.forward(*args)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Yield the parts with their names, in the order in which they were set."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield value.alias or name, value
            elif isinstance(value, list):
                parts = ((f"{name}.{i}", part) for i, part in enumerate(value))
                yield from ((path, part) for path, part in parts if isinstance(part, Module))


@dataclass(frozen=True, slots=True)
class Leaf:
    """One checkpoint tensor that a layer is made of.

    Attributes:
        name: Below the layer's parent: ``q_proj.weight``.
        shape: Of the whole tensor, over all ranks.
        role: What it is for.
        is_optional: Whether a checkpoint may leave it out.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    is_optional: bool = False


class Layer(Module):
    """A module with weights. Its own attribute name is no part of its tensors' names."""

    def leaves(self) -> Sequence[Leaf]:
        """Return the checkpoint tensors it is made of."""
        raise NotImplementedError

    def allocate(self, layouts: Mapping[str, Layout]) -> None:
        """Make room for the weights.

        Args:
            layouts: How the checkpoint has each leaf, by the leaf's name.
        """
        raise NotImplementedError

    @property
    def allocated_after(self) -> Layer | None:
        """The layer that must be allocated before this one; None: there is none."""
        return None

    def load(self, name: str, source: Source) -> None:
        """Take this rank's share of the leaf ``name``; may come again when weights change."""
        raise NotImplementedError

    def read(self, name: str, num_rows: int) -> Tensor:
        """Return the first rows of the leaf ``name``, as the layer computes with them.

        Only where one rank has all of it. The result may be of any float dtype.

        Raises:
            UnsupportedError: The layer cannot tell.
        """
        raise UnsupportedError(
            f"{name} cannot be read back: its layer, {type(self).__name__}, has packed it.",
            remedy="Read it from the model's folder, which GET /model_info names.",
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights on this rank, once allocated."""
        raise NotImplementedError


def find_layers(module: Module, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Yield every layer below ``module`` with the prefix of its leaves' names."""
    for name, child in module.children():
        if isinstance(child, Layer):
            yield prefix, child
        else:
            yield from find_layers(child, f"{prefix}{name}.")


def allocation_order(module: Module) -> list[tuple[str, Layer]]:
    """Return what :func:`find_layers` yields, each layer after the one that it needs allocated."""
    found = list(find_layers(module))
    prefixes = {id(layer): prefix for prefix, layer in found}
    ordered: dict[int, tuple[str, Layer]] = {}
    for prefix, layer in found:
        first = layer.allocated_after
        if first is not None:
            ordered.setdefault(id(first), (prefixes[id(first)], first))
        ordered.setdefault(id(layer), (prefix, layer))
    return list(ordered.values())
