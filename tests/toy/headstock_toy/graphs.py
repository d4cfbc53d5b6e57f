"""Fake graphs: replay runs the step again and refuses one that real graphs would get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headstock.plugins.device import GraphKey

HOST_READS = frozenset(
    {"aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero"}
)
"""What a captured step may not do: the host would wait for the device."""


class ToyGraph:
    """A captured step.

    A real graph has baked in every address and every number that the host gave; so the calls of
    a replay, their sizes, their numbers and where they read from must be those of the capture.
    """

    def __init__(self, key: GraphKey, step: Callable[[], None]) -> None:
        self._key = key
        self._step = step
        self._calls = self._watch()

    @staticmethod
    def place(value: Tensor, *, is_made: bool) -> str:
        """Return what is baked in of where a tensor lies."""
        return "made here" if is_made else f"at {value.data_ptr():#x}"

    def replay(self) -> None:
        calls = self._watch()
        for index, (then, now) in enumerate(zip(self._calls, calls, strict=False)):
            assert then == now, f"{self._key}: call {index} was {then} at capture and is {now}"
        assert len(calls) == len(self._calls), f"{self._key}: other calls than at capture"

    def _watch(self) -> list[str]:
        with torch.inference_mode(), _Calls(self.place) as watched:
            self._step()
        return watched.calls


class _Calls(TorchDispatchMode):
    """Notes every call as text, with the addresses of tensors that the step did not make."""

    def __init__(self, place: Callable[..., str]) -> None:
        super().__init__()
        self._place = place
        self.calls: list[str] = []
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func.name()).replace("::", ".")
        assert name not in HOST_READS, f"{name} makes the host wait"
        noted = [self._note(value) for value in tree_leaves((args, kwargs))]
        self.calls.append(f"{name}({', '.join(noted)})")
        result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._made.setdefault(_address(made), made)
        return result

    def _note(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            return repr(value)
        where = self._place(value, is_made=_address(value) in self._made)
        return f"{value.dtype} {list(value.shape)} {where}"


def _address(value: Tensor) -> int:
    """Return where a tensor's memory begins, past whatever a toy's own tensors say of it."""
    with torch._C.DisableTorchFunctionSubclass():
        return value.untyped_storage().data_ptr()
