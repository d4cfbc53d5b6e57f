"""A TPU in use, or several that compute together: memory, programs, copies to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from headstock.plugins.device import DeviceFacts, Graph, GraphKey, Memory
from headstock_tpu.policy import StaticPolicy
from headstock_tpu.runtime import Runtime

if TYPE_CHECKING:
    from torch import Tensor

ON_CHIP = DeviceFacts(
    default_slots=255,
    default_step_tokens=2048,
    is_functional=True,
    captures_on_use=True,
    compiles_sizes=True,
)
ON_HOST = DeviceFacts(
    shares_host_memory=True,
    default_slots=8,
    default_step_tokens=64,
    is_functional=True,
    captures_on_use=True,
    compiles_sizes=True,
)


class Arriving:
    """A copy to the host. What is copied is a value of its own, which no later step changes."""

    def __init__(self, taken: Tensor, into: Tensor) -> None:
        self._taken: Tensor | None = taken
        self._into = into

    def wait(self) -> Tensor:
        """Wait for what was copied, not for what was started after it."""
        if self._taken is not None:
            self._into.copy_(self._taken)
            self._taken = None
        return self._into


class TpuDevice:
    """Whatever a runtime computes on.

    Args:
        runtime: Runs programs.
        capabilities: ``tpu`` and the chip's generation, or ``pjrt_cpu``.
    """

    num_threads = 1
    depth = 2

    def __init__(self, runtime: Runtime, capabilities: frozenset[str]) -> None:
        self.runtime = runtime
        self.torch_device = runtime.torch_device
        self.capabilities = capabilities
        self.name = runtime.name
        self.facts = ON_HOST if runtime.is_host else ON_CHIP
        self.default_dtype: torch.dtype | None = torch.float32 if runtime.is_host else None
        self.graph_policy = StaticPolicy()

    def memory(self) -> Memory:
        """Return the memory figures."""
        return self.runtime.memory()

    def reset_peak(self) -> None:
        """Start a new measurement of the peak."""
        self.runtime.reset_peak()

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return memory of the device."""
        made = torch.empty(shape, dtype=dtype, device=self.torch_device)
        self.runtime.track(made)
        return made

    def host_buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return zeroed host memory."""
        return torch.zeros(shape, dtype=dtype)

    def fetch(self, source: Tensor, into: Tensor) -> Arriving:
        """Take the value that ``source`` has after all that was asked for, and start it."""
        taken = source.clone()
        self.runtime.flush()
        return Arriving(taken, into)

    def capture(self, key: GraphKey, step: Callable[[], None]) -> Graph:
        """Compile ``step`` as one program."""
        return self.runtime.capture(step)

    def cut(self) -> None:
        """Start what was asked for as a program of its own."""
        self.runtime.flush()

    def trim(self) -> None:
        """Do nothing: its facts promise nothing."""

    def synchronize(self) -> None:
        """Wait for everything."""
        self.runtime.wait()

    def close(self) -> None:
        """Wait for everything; memory goes with its tensors."""
        self.runtime.wait()
