"""A device on the host whose graphs are real: a tape of tensor operations, replayed blindly."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headstock.plugins.host import HostDevice

SYNCHRONISING = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.masked_select.default",
    "aten.is_nonzero.default",
    "aten.equal.default",
    "aten._unique2.default",
}


class Tape(TorchDispatchMode):
    """Records what is called, with which tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Call everything again; fresh results go where they went when it was recorded."""
        for func, args, kwargs, old in self.calls:
            taken = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
            new = func(*args, **kwargs)
            for to, result in zip(tree_leaves(old), tree_leaves(new), strict=True):
                if isinstance(to, torch.Tensor) and _memory(to) not in taken:
                    to.copy_(result)


def _memory(x):
    return x.untyped_storage().data_ptr()


class NoSync(TorchDispatchMode):
    """Refuses what would make the host wait for a device, or depend on its data."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert str(func) not in SYNCHRONISING, f"{func} in a launch"
        indexes = args[1] if str(func).startswith("aten.index") and len(args) > 1 else ()
        for index in indexes if isinstance(indexes, list | tuple) else ():
            assert index is None or index.dtype != torch.bool, f"{func} by a mask in a launch"
        return func(*args, **(kwargs or {}))


class PowerPolicy:
    """Pads to powers of two; ragged steps too if told so."""

    def __init__(self, is_ragged: bool) -> None:
        self._is_ragged = is_ragged

    def bucket(self, num_tokens, num_rows, is_uniform):
        if is_uniform:
            size = 1 << (num_rows - 1).bit_length()
            return size, size
        if not self._is_ragged:
            return None
        return max(8, 1 << (num_tokens - 1).bit_length()), max(4, 1 << (num_rows - 1).bit_length())

    def warm_up(self, max_tokens, max_rows):
        sizes = [(1, 1, True), (2, 2, True), (4, 4, True), (8, 8, True), (1024, 1024, True)]
        return sizes + ([(64, 8, False)] if self._is_ragged else [])


class TapeDevice(HostDevice):
    """The host with graphs.

    Attributes:
        keys: Of what was captured, in order.
        replays: How often something was replayed.
    """

    def __init__(self, *, is_ragged: bool = False, runs_at_capture: int = 1) -> None:
        super().__init__()
        self.graph_policy = PowerPolicy(is_ragged)
        self.keys = []
        self.replays = 0
        self._runs_at_capture = runs_at_capture

    def capture(self, key, step):
        assert key not in self.keys, f"{key} is captured twice"
        self.keys.append(key)
        for _ in range(self._runs_at_capture - 1):
            step()
        with Tape() as tape:
            step()
        return _Graph(self, tape)


class _Graph:
    def __init__(self, device, tape) -> None:
        self._device = device
        self._tape = tape

    def replay(self) -> None:
        self._device.replays += 1
        self._tape.replay()
