"""What adapters add to products. Shapes as in :mod:`headstock.ops.lora`."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from headstock.ops import lora
from headstock_xeon.kernels.offers import EIGHTS, FLOAT32, Kernels, computes
from headstock_xeon.stream import rows_of, strided

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice


class LoraKernels(Kernels):
    """The op ``add_lora``; R must be a multiple of a vector."""

    def __init__(self, device: XeonDevice) -> None:
        super().__init__(device)
        self._starts: dict[tuple[int, ...], ctypes.Array[ctypes.c_int64]] = {}

    @computes(lora.add_lora, replace(FLOAT32, sizes={"rank": EIGHTS}))
    def add_lora(
        self,
        out_TO: Tensor,
        x_TI: Tensor,
        down_NKI: Tensor,
        up_NOR: Tensor,
        adapters_T: Tensor,
        *,
        starts: tuple[int, ...],
    ) -> Tensor:
        """Add in place what each token's adapter says."""
        out_TO = rows_of(out_TO)
        if starts not in self._starts:  # no tensor: a capture would take its making down
            self._starts[starts] = (ctypes.c_int64 * len(starts))(*starts)
        starts_P = self._starts[starts]
        self._stream.hold(starts_P)
        given = (*strided(x_TI), down_NKI, up_NOR, adapters_T, ctypes.addressof(starts_P))
        sizes = (*x_TI.shape, *up_NOR.shape[1:], len(starts))
        self._stream.emit("lora", *given, *strided(out_TO), *sizes)
        return out_TO
