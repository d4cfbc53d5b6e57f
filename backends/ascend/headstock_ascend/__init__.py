"""The ascend backend: Huawei Ascend NPUs. Probe only: it has no kernels yet."""

from __future__ import annotations

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe
from headstock_ascend.probe import probe

HOOK_API = (2, 0)


@hookimpl
def headstock_probe() -> Probe:
    """Look for the NPU driver's device files."""
    return probe()
