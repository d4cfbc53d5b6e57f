"""The runtime torch-xla: PyTorch's calls are noted, and what was noted runs as one program.

A program is compiled when its calls and sizes are met for the first time. A write in place is a
new value of the tensor; the runtime gives the program the old value's memory for it, so that pages
and tables are not copied.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
import torch_xla  # pyright: ignore[reportMissingImports]
import torch_xla.core.xla_model as xm  # pyright: ignore[reportMissingImports]
import torch_xla.debug.metrics as metrics  # pyright: ignore[reportMissingImports]
import torch_xla.distributed.spmd as xs  # pyright: ignore[reportMissingImports]
import torch_xla.runtime as xr  # pyright: ignore[reportMissingImports]

from headstock.errors import ConfigError
from headstock.plugins.device import Memory
from headstock.plugins.host import HostDevice
from headstock_tpu.options import TpuOptions

if TYPE_CHECKING:
    from torch import Tensor

MOST_AGED = 1 << 20
"""Elements of the largest memory whose views are looked after: tables and buffers, not pages."""

AXIS = "devices"
"""Of the mesh, which has one."""


class XlaProgram:
    """A step that runs as one program, apart from what was asked for before and after it."""

    def __init__(self, step: Callable[[], None], age_views: Callable[[], None]) -> None:
        self._step = step
        self._age_views = age_views

    def replay(self) -> None:
        """Note the step's calls again, and start the program that they are."""
        torch_xla.sync()
        self._age_views()
        self._step()
        torch_xla.sync()


class XlaRuntime:
    """torch-xla on one device, or on several that compute each layer together.

    Args:
        index: Of the device.
        options: Which kind, and how many together.

    Raises:
        ConfigError: The process has begun with another kind of device, or there is no such device.
    """

    def __init__(self, index: int, options: TpuOptions) -> None:
        kind = options.pjrt.upper()
        _choose_kind(kind, options.mesh)
        count = xr.global_runtime_device_count()
        if max(index, options.mesh - 1) >= count:
            raise ConfigError(
                f"device_index is {index} and mesh {options.mesh}; torch-xla has {count} devices.",
                remedy="Lower --device-index, or --backend-option mesh.",
            )
        self.is_host = kind == "CPU"
        self.takes_kernels = not self.is_host
        self.torch_device = torch_xla.device(index)
        self.name = f"{kind} device of torch-xla {torch_xla.__version__}"
        self._host = HostDevice()
        self._tracked: list[ref[Tensor]] = []
        self.mesh: Any = None
        if options.mesh > 1:
            self.mesh = xs.Mesh(np.arange(options.mesh), (options.mesh,), (AXIS,))
            self.name += f", {options.mesh} together"

    def spread(self, tensor: Tensor, *, axis: int) -> None:
        """Give each device of the mesh a part of ``tensor`` along ``axis``, if it divides."""
        torch_xla.sync()
        if tensor.shape[axis] % self.mesh.size() == 0:
            places = [AXIS if index == axis else None for index in range(tensor.dim())]
            xs.mark_sharding(tensor, self.mesh, tuple(places))

    def flush(self) -> None:
        """Start what was noted."""
        torch_xla.sync()

    def wait(self) -> None:
        """Start what was noted, and wait for all that runs."""
        torch_xla.sync(wait=True)
        xm.wait_device_ops()

    def capture(self, step: Callable[[], None]) -> XlaProgram:
        """Run ``step`` as one program, which compiles it."""
        program = XlaProgram(step, self._age_views)
        program.replay()
        return program

    def track(self, tensor: Tensor) -> None:
        """Take note of memory that the core keeps, and perhaps keeps views of."""
        if tensor.numel() <= MOST_AGED:
            self._tracked.append(ref(tensor))

    def _age_views(self) -> None:
        """Make every view of tracked memory be taken anew.

        A view whose tensor was written to is made again where a step reads it, and is then a result
        of the program beside what the step writes. Were only some made again, depending on what was
        sent before the step, equal steps would be different programs.
        """
        alive = [(known, known()) for known in self._tracked]
        self._tracked = [known for known, tensor in alive if tensor is not None]
        for _, tensor in alive:
            if tensor is not None:
                tensor.copy_(tensor.detach())

    def memory(self) -> Memory:
        """Return the device's figures; of the CPU device those of the host."""
        if self.is_host:
            return self._host.memory()
        info = xm.get_memory_info(self.torch_device)
        total, used = int(info["bytes_limit"]), int(info["bytes_used"])
        peak = int(info.get("peak_bytes_used", used))
        return Memory(total=total, free=total - used, peak=peak)

    def reset_peak(self) -> None:
        """Start a new measurement where that can be done; the runtime's own peak has no reset."""
        if self.is_host:
            self._host.reset_peak()

    def num_compiled(self) -> int:
        """Return how many programs this process has compiled."""
        data = metrics.metric_data("CompileTime")
        return 0 if data is None else int(data[0])


def _choose_kind(kind: str, mesh: int) -> None:
    """Tell torch-xla which devices to use; it decides once a process.

    Raises:
        ConfigError: It has decided otherwise.
    """
    if kind == "CPU" and mesh > 1:
        os.environ["CPU_NUM_DEVICES"] = str(mesh)
    xr.set_device_type(kind)
    if mesh > 1 and not xr.is_spmd():
        xr.use_spmd()
    found = xr.device_type()
    if found != kind:
        raise ConfigError(
            f"backend_option pjrt is {kind.lower()!r}; this process has begun with {found}.",
            remedy="Use one kind of device in a process.",
        )
