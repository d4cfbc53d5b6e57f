"""Formats of 8-bit floats: the one of checkpoints, and another that some devices multiply.

Both have four bits of exponent and three of mantissa. In ``e4m3fnuz`` the exponent's bias is one
higher, so the same bits mean half as much: a weight is taken there exactly, by its scale. Only two
codes differ: what is the negative zero of ``e4m3fn`` is the sole not-a-number of ``e4m3fnuz``,
whose codes for not-a-number of ``e4m3fn`` are numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headstock.ops.canonical import FP8_MAX
from headstock.ops.linear import CanonicalWeight

if TYPE_CHECKING:
    from headstock.ops.device import OpDevice

MAGNITUDE = 0x7F
"""The bits but for the sign; all set, they are not a number in ``e4m3fn``."""
NOT_A_NUMBER = 0x80
"""Of ``e4m3fnuz``."""


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """One format that a device multiplies.

    Attributes:
        capability: Which says that a device does.
        dtype: Of the numbers.
        largest: The largest number that activations are quantised to.
    """

    capability: str
    dtype: torch.dtype
    largest: float

    def converted(self, part: CanonicalWeight) -> CanonicalWeight:
        """Return a weight of layout ``fp8-group`` in this format: the same numbers, exactly."""
        if self.dtype == torch.float8_e4m3fn:
            return part
        codes = part["weight"].view(torch.uint8)
        magnitudes = codes & MAGNITUDE
        codes = codes.masked_fill(magnitudes == 0, 0)
        codes = codes.masked_fill(magnitudes == MAGNITUDE, NOT_A_NUMBER)
        return {"weight": codes.view(self.dtype), "scale": part["scale"] * 2}


OCP = Fp8Format("fp8", torch.float8_e4m3fn, FP8_MAX)
FNUZ = Fp8Format("fp8_fnuz", torch.float8_e4m3fnuz, 240.0)
FORMATS = (OCP, FNUZ)


def format_of(device: OpDevice) -> Fp8Format:
    """Return the format that ``device`` multiplies."""
    return FNUZ if FNUZ.capability in device.capabilities else OCP
