"""The rocm backend: AMD GPUs. Probe only: it has no kernels yet."""

from __future__ import annotations

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe
from headstock_rocm.probe import probe

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Read the kernel driver's list of GPUs."""
    return probe()
