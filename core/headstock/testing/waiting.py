"""Notices code that makes the host wait for the device, on devices that would not notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = frozenset(
    {
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.nonzero_numpy",
        "aten.masked_select",
        "aten.equal",
        "aten.is_nonzero",
        "aten._unique2",
        "aten.unique_consecutive",
        "aten.unique_dim",
        "aten.bincount",
    }
)
"""Calls whose result, or its size, the host must know before it goes on."""
INDEXING = frozenset({"aten.index", "aten.index_put", "aten.index_put_"})
TO_HOST = ("tolist", "cpu")
"""Methods that PyTorch's dispatcher does not see where memory is the host's anyway."""
RUNS = frozenset({"plan", "write", "run", "rows", "product"})
"""Methods of what built ops build that a step calls."""


class HostWaitError(AssertionError):
    """What an op may not do."""


@contextmanager
def never_waiting() -> Iterator[None]:
    """Refuse, within the block, what waits for the device.

    Raises:
        HostWaitError: Naming the call.
    """
    with _Methods(), _Calls():
        yield


def watched(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``run``, which may not wait."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with never_waiting():
            return run(*args, **kwargs)

    return call


def watched_builder(build: Callable[..., Any]) -> Callable[..., Any]:
    """Return a builder of what ``build`` makes, whose steps may not wait; loading may."""
    return lambda spec, device: _Watched(build(spec, device))


class _Watched:
    def __init__(self, built: Any) -> None:
        self._built = built

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return watched(self._built)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._built, name)
        return watched(found) if name in RUNS else found


class _Methods(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in TO_HOST and func is getattr(Tensor, name):
            raise HostWaitError(f"Tensor.{name}() makes the host wait for the device")
        return func(*args, **(kwargs or {}))


class _Calls(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = ".".join(func.name().replace("::", ".").split(".")[:2])
        is_by_mask = name in INDEXING and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1])
        )
        if name in READS or is_by_mask:
            what = f"{name} by a mask" if is_by_mask else name
            raise HostWaitError(f"{what} makes the host wait for the device")
        result = func(*args, **(kwargs or {}))
        if name in ("aten._to_copy", "aten.copy_") and _arrives_on_host(args, result):
            raise HostWaitError(f"{name} to the host makes it wait for the device")
        return result


def _arrives_on_host(args: tuple[Any, ...], result: Any) -> bool:
    sources = [each.device.type for each in tree_leaves(args) if isinstance(each, Tensor)]
    return result.device.type == "cpu" and any(kind != "cpu" for kind in sources)
