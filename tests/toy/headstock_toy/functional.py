"""The device of the functional toy: tensors of one dtype that have no address."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from headstock.plugins.device import GraphKey
from headstock_toy.device import LateTransfer, ToyDevice
from headstock_toy.graphs import ToyGraph

ADDRESSES = ("data_ptr", "untyped_storage", "storage", "numpy")


class Value(Tensor):
    """A tensor of the device."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        is_own = func is getattr(Tensor, name, None)
        assert not (is_own and name in ADDRESSES), f"a functional device's tensors have no {name}()"
        result = super().__torch_function__(func, types, args, kwargs or {})
        is_recast = is_own and name == "view" and any(isinstance(a, torch.dtype) for a in args[1:])
        return result.clone() if is_recast else result


class FunctionalGraph(ToyGraph):
    """A compiled step: the same calls on tensors of the same shapes, whatever their addresses."""

    @staticmethod
    def place(value: Tensor, *, is_made: bool) -> str:
        return "made here" if is_made else "given"


class FunctionalDevice(ToyDevice):
    """The toy's device with values for memory."""

    name = "functional toy"
    facts = replace(ToyDevice.facts, is_functional=True)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return super().empty(shape, dtype).as_subclass(Value)

    def fetch(self, source: Tensor, into: Tensor) -> LateTransfer:
        return super().fetch(source.as_subclass(Tensor), into)

    def capture(self, key: GraphKey, step: Callable[[], None]) -> FunctionalGraph:
        return FunctionalGraph(key, step)
