"""The cuda backend: NVIDIA GPUs."""

from __future__ import annotations

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe
from headstock_cuda.probe import probe

HOOK_API = (1, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Ask the driver for its GPUs, and read how the installed PyTorch was built."""
    return probe()
