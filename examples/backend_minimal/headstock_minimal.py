"""The smallest backend: the host's processor, and one op of its own.

    pip install ./examples/backend_minimal
    pytest --pyargs headstock.testing.suite --headstock-backend=minimal
    headstock serve --backend minimal --max-model-len 1024

Everything but the op is the reference's. ``headstock new-backend`` writes one to go on from.

Shapes: D features; leading dimensions as they come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headstock.plugins.hooks import hookimpl
from headstock.plugins.probe import Probe, ProbedDevice, Status

if TYPE_CHECKING:
    from torch import Tensor

    from headstock.ops.base import OpRegistry
    from headstock.plugins.device import Device

HOOK_API = (2, 1)
PROVIDER = "minimal"


@hookimpl
def headstock_probe() -> Probe:
    """Say that it runs anywhere. Imports no torch."""
    devices = (ProbedDevice(index=0, name="host", arch="any", is_host=True),)
    return Probe(status=Status.AVAILABLE, reason="any processor", score=1, devices=devices)


@hookimpl
def headstock_device(num_threads: int) -> Device:
    """Open the host."""
    from headstock.plugins.host import HostDevice

    return HostDevice(num_threads=num_threads)


@hookimpl
def headstock_register_ops(registry: OpRegistry) -> None:
    """Offer the one op."""
    from headstock.ops.base import Requires
    from headstock.ops.norm import rms_norm

    floats = frozenset({"float32", "bfloat16", "float16"})
    registry.add(rms_norm, PROVIDER, fused_rms_norm, requires=Requires(dtypes=floats))


def fused_rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float) -> Tensor:
    """Return the normalised rows; parameters are named as the reference's. [..., D]"""
    from torch.nn import functional

    x32_TD = x_TD.float()
    normal_TD = functional.rms_norm(x32_TD, (x32_TD.shape[-1],), eps=eps)
    return normal_TD.to(x_TD.dtype) * weight_D
