"""Sees whether a model touches tensors only through ops and views, so that it can be captured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headstock.ops.base import Op, OpRegistry, Resolver, Spec
from headstock.plugins.host import HostDevice

VIEWS = {
    torch.ops.aten.view.default,
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.select.int,
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.unsqueeze.default,
    torch.ops.aten.split.Tensor,
    torch.ops.aten.split_with_sizes.default,
}


class Watch(TorchDispatchMode):
    """Refuses every call outside of an op that is no view."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = 0
        self.num_calls = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Allow an op everything."""
        self.depth += 1
        self.num_calls += 1
        yield
        self.depth -= 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a PyTorch call, if it is allowed where it is made."""
        assert self.depth > 0 or func in VIEWS, f"{func} is called outside of any op"
        return func(*args, **(kwargs or {}))


class WatchedResolver(Resolver):
    """Resolves to the reference, each call announced to the watch."""

    def __init__(self, watch: Watch) -> None:
        """Announce to ``watch``."""
        super().__init__(OpRegistry(), HostDevice(num_threads=1))
        self._watch = watch

    def resolve(self, op: Op[..., Any], spec: Spec) -> Callable[..., Any]:
        """Choose, and announce what is chosen."""
        chosen = super().resolve(op, spec)
        if op.is_built:
            return lambda *args: WatchedObject(chosen(*args), self._watch)
        return watched(chosen, self._watch)


class WatchedObject:
    """A provider whose methods are announced."""

    def __init__(self, built: Any, watch: Watch) -> None:
        self._built, self._watch = built, watch

    def __call__(self, *args: Any) -> Any:
        return watched(self._built, self._watch)(*args)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._built, name)
        return watched(value, self._watch) if callable(value) else value


def watched(call: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    """Return ``call``, announced to ``watch``."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with watch.inside():
            return call(*args, **kwargs)

    return run
