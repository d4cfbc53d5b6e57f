"""The backend's device over a ``torch.npu`` that is made up: streams in order, graphs that replay.

A graph keeps the calls of the step with the very tensors and numbers that they had, and does them
again: what the host decided at the capture is baked in, as on an NPU, but for what is updated.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from headstock.plugins.hooks import GroupInfo
from headstock.plugins.host import HostDevice
from headstock_ascend.communication import HcclGroup
from headstock_ascend.device import AscendDevice
from headstock_npu_on_cpu import kernels

UPDATED = "npu::npu_fused_infer_attention_score"
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}


class Call:
    """One call of a captured step."""

    def __init__(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        self.func, self.args, self.kwargs, self.result = func, args, kwargs, result
        given = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self._is_new = [_place(x) not in given for x in made]

    def again(self) -> None:
        """Do it again; what it makes goes where the first result lies."""
        made = tree_leaves(self.func(*self.args, **self.kwargs))
        pairs = zip(tree_leaves(self.result), made, strict=True)
        tensors = [(old, new) for old, new in pairs if isinstance(old, Tensor)]
        for (old, new), is_new in zip(tensors, self._is_new, strict=True):
            if is_new:
                old.copy_(new)


class Recording(TorchDispatchMode):
    """Keeps calls."""

    def __init__(self, calls: list[Call]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.name() not in WAITS, f"{func.name()} waits for the device in a captured step"
        result = func(*args, **(kwargs or {}))
        self._calls.append(Call(func, args, dict(kwargs or {}), result))
        return result


class NPUGraph:
    """What ``torch.npu.NPUGraph`` promises."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.auto_dispatch_capture = False

    @property
    def updated(self) -> list[Call]:
        """The calls whose lengths can be updated."""
        return [call for call in self.calls if call.func.name().startswith(UPDATED)]

    def update(self, cpu_update_input: list[dict[str, Any]]) -> None:
        assert self.auto_dispatch_capture, "the graph was captured so that nothing is updated"
        calls = self.updated
        assert len(cpu_update_input) in (1, len(calls)), "an update for each call, or one for all"
        if len(cpu_update_input) == 1:
            cpu_update_input = cpu_update_input * len(calls)
        for call, changed in zip(calls, cpu_update_input, strict=True):
            assert changed.keys() <= call.kwargs.keys(), f"{set(changed)} was not given by name"
            assert len(call.args) == 3, "torch-npu takes query, key and value by their places"
            call.kwargs |= changed

    def replay(self) -> None:
        with torch.inference_mode():
            for call in self.calls:
                call.again()


@contextmanager
def graph(
    npu_graph: NPUGraph,
    pool: Any = None,
    stream: Any = None,
    auto_dispatch_capture: bool = False,
    capture_error_mode: str = "global",
) -> Iterator[None]:
    """Capture, as ``torch.npu.graph`` does."""
    npu_graph.auto_dispatch_capture = auto_dispatch_capture
    with Recording(npu_graph.calls):
        yield


def made_up_npu() -> SimpleNamespace:
    """Return what stands for ``torch.npu``."""
    host = HostDevice()
    stream = SimpleNamespace(wait_stream=lambda other: None)

    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        yield

    return SimpleNamespace(
        NPUGraph=NPUGraph,
        graph=graph,
        graph_pool_handle=lambda: (0, 1),
        Stream=lambda device: stream,
        Event=lambda: SimpleNamespace(record=lambda stream: None, synchronize=lambda: None),
        stream=on,
        current_stream=lambda device: stream,
        set_device=lambda device: None,
        synchronize=lambda device: None,
        empty_cache=lambda: None,
        mem_get_info=lambda device: (host.memory().free, host.memory().total),
        memory_reserved=lambda device: 0,
        memory_allocated=lambda device: 0,
        max_memory_allocated=lambda device: host.memory().peak,
        reset_peak_memory_stats=lambda device: host.reset_peak(),
    )


NAME = "made-up NPU on the host, which takes float32 in attention, too"


class NpuOnCpu(AscendDevice):
    """The backend's device, in the host's memory."""

    facts = replace(
        AscendDevice.facts, shares_host_memory=True, default_slots=8, default_step_tokens=512
    )
    default_dtype = torch.float32

    def __init__(self) -> None:
        kernels.install()
        where, capabilities = torch.device("cpu"), frozenset({"ascend", "bf16"})
        super().__init__(made_up_npu(), where, NAME, capabilities)


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def connect_gloo(store: Any, info: GroupInfo, device: torch.device, timeout: timedelta) -> Any:
    """Join by PyTorch's library for hosts, whose process groups are called alike."""
    library: Any = dist
    return library.ProcessGroupGloo(store, info.rank, info.size, timeout)


class GlooGroup(HcclGroup):
    """The backend's group. The made-up graphs do not see calls of process groups."""

    is_capturable = False

    def __init__(self, info: GroupInfo, device: torch.device) -> None:
        super().__init__(info, device, connect=connect_gloo)
