"""What kernels are compiled for: the few facts of a device that change how they are launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

HOPPER = 90
"""Its compute capability; kernels in Gluon are compiled for no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device that Triton compiles for.

    Attributes:
        kind: ``cuda``, ``hip``, or ``cpu`` for Triton's interpreter.
        arch: Compute capability as major * 10 + minor; 0 elsewhere.
        num_sms: Multiprocessors, over which work is spread.
        has_pdl: Whether a kernel may begin before the one before it has ended
            (programmatic dependent launch).
        has_tma: Whether tiles can be copied by tensor descriptors.
        has_wgmma: Whether groups of four warps multiply from shared memory: Hopper, and it alone.
    """

    kind: str
    arch: int = 0
    num_sms: int = 1
    has_pdl: bool = False
    has_tma: bool = False
    has_wgmma: bool = False

    @classmethod
    def of(cls, device: OpDevice) -> Target:
        """Read the facts of ``device``."""
        where = device.torch_device
        if where.type != "cuda":
            return cls(kind="cpu")
        properties = torch.cuda.get_device_properties(where)
        if torch.version.hip is not None:
            return cls(kind="hip", num_sms=properties.multi_processor_count)
        arch = properties.major * 10 + properties.minor
        return cls(
            kind="cuda",
            arch=arch,
            num_sms=properties.multi_processor_count,
            has_pdl=arch >= 90,
            has_tma=arch >= 90,
            has_wgmma=arch == HOPPER,
        )

    @property
    def has_large_blocks(self) -> bool:
        """Whether a block may have 160 KiB of shared memory, as on cards for data centres."""
        return self.arch in (80, 90, 100, 103)

    def launch(self, num_warps: int, max_registers: int | None = None) -> dict[str, Any]:
        """Return the launch options of a kernel that takes ``PDL``."""
        options: dict[str, Any] = {"num_warps": num_warps, "PDL": self.has_pdl}
        if max_registers is not None and self.kind == "cuda":
            options["maxnreg"] = max_registers
        return options | {"launch_pdl": True} if self.has_pdl else options


def next_power_of_2(x: int) -> int:
    """Return the smallest power of two that is not under ``x``; 1 for 0."""
    return 1 << max(x - 1, 0).bit_length()


def cdiv(x: int, by: int) -> int:
    """Return x / by, rounded up."""
    return -(-x // by)
