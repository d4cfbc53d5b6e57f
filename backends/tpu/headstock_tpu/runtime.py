"""What the device needs of whatever runs programs on a TPU: one seam, two runtimes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from headstock.plugins.device import Graph, Memory

if TYPE_CHECKING:
    import torch


class Runtime(Protocol):
    """A way to run PyTorch on a TPU.

    Attributes:
        name: For people.
        torch_device: Where tensors live.
        is_host: Whether that is the host's own processor.
        takes_kernels: Whether JAX's kernels can be part of a program.
    """

    name: str
    torch_device: torch.device
    is_host: bool
    takes_kernels: bool

    def track(self, tensor: torch.Tensor) -> None:
        """Take note of memory that the core keeps, and perhaps keeps views of."""
        ...

    def flush(self) -> None:
        """Start whatever PyTorch was asked for and has not been started."""
        ...

    def wait(self) -> None:
        """Wait until all that was started is over."""
        ...

    def capture(self, step: Callable[[], None]) -> Graph:
        """Run ``step`` as one program, compiled if it was not; the result runs it again."""
        ...

    def memory(self) -> Memory:
        """Return the device's memory."""
        ...

    def reset_peak(self) -> None:
        """Start a new measurement of the peak."""
        ...

    def num_compiled(self) -> int:
        """Return how many programs this process has compiled."""
        ...
