"""The runtime torch-tpu: an eager PyTorch device ``tpu``, whose steps ``torch.compile`` compiles.

No machine that we had runs it: it is tested against a stub. Beside the device and the compiler of
that name it uses PyTorch's calls for any accelerator alone.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from headstock.errors import ConfigError, UnsupportedError
from headstock.plugins.device import Memory

DEVICE = "tpu"
"""Of torch-tpu: the type of its tensors' device, and the name of its compiler."""


class CompiledStep:
    """A step that ``torch.compile`` made one program of."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step

    def replay(self) -> None:
        """Queue it."""
        self._step()


class TorchTpuRuntime:
    """torch-tpu on one chip.

    Args:
        index: Of the chip.

    Raises:
        ConfigError: torch-tpu is not installed or does not import, or there is no such chip.
        UnsupportedError: It sees no TPU.
    """

    is_host = False
    takes_kernels = False

    def __init__(self, index: int) -> None:
        try:
            import_module("torch_tpu")
        except ImportError as error:
            raise ConfigError(
                f"torch-tpu cannot be imported: {error}.",
                remedy="pip install 'headstock[tpu-torchtpu]', or pass runtime=xla.",
            ) from error
        # torch.tpu has these calls too, for PyTorch alone: ours would raise.
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type != DEVICE:
            raise UnsupportedError(
                "torch-tpu is installed and sees no TPU.",
                remedy="Give this machine or container its TPU, or use another --backend.",
            )
        count = torch.accelerator.device_count()
        if index >= count:
            raise ConfigError(
                f"device_index is {index}; torch-tpu sees {count} chips.",
                remedy="Lower --device-index.",
            )
        self.torch_device = torch.device(DEVICE, index)
        self.name = f"TPU by torch-tpu, chip {index}"
        self._num_compiled = 0

    def track(self, tensor: torch.Tensor) -> None:
        """Do nothing: views see what is written."""

    def flush(self) -> None:
        """Do nothing: what is asked for is started at once."""

    def wait(self) -> None:
        """Wait for all that runs."""
        torch.accelerator.synchronize(self.torch_device)

    def capture(self, step: Callable[[], None]) -> CompiledStep:
        """Compile ``step`` for the sizes that it has, and run it."""
        compiled = CompiledStep(torch.compile(step, backend=DEVICE, dynamic=False))
        compiled.replay()
        self._num_compiled += 1
        return compiled

    def memory(self) -> Memory:
        """Return the chip's figures."""
        free, total = torch.accelerator.get_memory_info(self.torch_device)
        peak = torch.accelerator.max_memory_allocated(self.torch_device)
        return Memory(total=total, free=free, peak=peak)

    def reset_peak(self) -> None:
        """Start a new measurement of the peak."""
        torch.accelerator.reset_peak_memory_stats(self.torch_device)

    def num_compiled(self) -> int:
        """Return how many steps were compiled."""
        return self._num_compiled
