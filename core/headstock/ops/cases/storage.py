"""What providers do with weights that they were given: for cases of packed storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

DEPTH = 4
"""How many objects deep tensors are looked for."""


def load_and_spoil(
    weight: Mapping[str, Tensor], load: Callable[[Mapping[str, Tensor]], None]
) -> None:
    """Load a copy of ``weight``, then overwrite the copy: who kept it, computes garbage."""
    part = {name: tensor.clone() for name, tensor in weight.items()}
    load(part)
    for tensor in part.values():
        tensor.view(torch.uint8).fill_(0x55)


def addresses(provider: object) -> list[int]:
    """Return where tensors lie that a provider holds; storage outside of PyTorch is not seen."""
    return sorted({tensor.data_ptr() for tensor in _tensors(provider, DEPTH)})


def _tensors(held: object, depth: int) -> Iterator[Tensor]:
    if isinstance(held, Tensor):
        yield held
    elif depth:
        for value in _values(held):
            yield from _tensors(value, depth - 1)


def _values(held: object) -> list[Any]:
    """Return what a container or an object of a provider's own holds."""
    if isinstance(held, Mapping):
        return list(held.values())
    if isinstance(held, (list, tuple)):
        return list(held)
    if isinstance(held, (str, bytes, int, float, type)) or callable(getattr(held, "__get__", None)):
        return []
    slots = [name for kind in type(held).__mro__ for name in getattr(kind, "__slots__", ())]
    found = [getattr(held, name, None) for name in slots]
    return [*getattr(held, "__dict__", {}).values(), *found]
