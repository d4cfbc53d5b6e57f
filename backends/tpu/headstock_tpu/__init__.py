"""The tpu backend: Google TPUs. Probe only: it has no kernels yet."""

from __future__ import annotations

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe
from headstock_tpu.probe import probe

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Look for TPU chips on the PCI bus."""
    return probe()
