"""What kernels are compiled for: the few facts of a device that change how they are launched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

HOPPER = 90
"""Its compute capability; kernels in Gluon are compiled for no other."""

HIP_STAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device that Triton compiles for.

    Attributes:
        kind: ``cuda``, ``hip``, or ``cpu`` for Triton's interpreter.
        arch: Compute capability as major * 10 + minor; 0 elsewhere.
        num_sms: Multiprocessors, over which work is spread.
        warp_size: Threads of a warp.
        has_pdl: Whether a kernel may begin before the one before it has ended
            (programmatic dependent launch).
        has_tma: Whether tiles can be copied by tensor descriptors.
        has_wgmma: Whether groups of four warps multiply from shared memory: Hopper, and it alone.
    """

    kind: str
    arch: int = 0
    num_sms: int = 1
    warp_size: int = 32
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
            return cls(
                kind="hip",
                num_sms=properties.multi_processor_count,
                warp_size=properties.warp_size,
            )
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

    @property
    def has_small_warps(self) -> bool:
        """Whether it is AMD's with warps of 32 threads: its cards for desktops."""
        return self.kind == "hip" and self.warp_size == 32

    @property
    def converts_four_bit_floats(self) -> bool:
        """Whether Triton's compiler can: the one for AMD's GPUs stops with an assertion."""
        return self.kind != "hip"

    def precision(self, dtype: torch.dtype) -> str:
        """Return how products in a model of ``dtype`` are made; float32 drops no bits.

        What is float32 within a model of 16 bits may be rounded to TF32, where that exists.
        """
        return "tf32" if dtype != torch.float32 and self.kind != "hip" else "ieee"

    def state_precision(self, dtype: torch.dtype) -> str:
        """Return how products with states are made, which are float32 in every model.

        TF32 has float16's digits: states and sums rounded to it would double float16's error.
        """
        precision = self.precision(dtype)
        return "tf32x3" if precision == "tf32" and dtype == torch.float16 else precision

    def stages(self, wanted: int) -> int:
        """Return how many tiles a loop may have under way where ``wanted`` are best elsewhere.

        AMD's blocks share 64 KiB, and its compiler keeps one tile in registers besides.
        """
        if self.kind != "hip":
            return wanted
        return 1 if self.has_small_warps else min(wanted, HIP_STAGES)

    def launch(self, num_warps: int, max_registers: int | None = None) -> dict[str, Any]:
        """Return the launch options of a kernel that takes ``PDL``."""
        if self.has_small_warps:
            num_warps *= 2  # AMD's warps of 64 share a tile among twice as many registers
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
