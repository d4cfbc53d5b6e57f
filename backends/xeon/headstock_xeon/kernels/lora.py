"""What adapters add to products. Shapes as in :mod:`headstock.ops.lora`."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from torch import Tensor

from headstock_xeon.stream import rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice

RANK_UNIT = 8
"""R must be a multiple of this: numbers of a vector."""


class LoraKernels:
    """The op ``add_lora`` bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        self._lora = device.stream.kernel("lora")
        self._starts: dict[tuple[int, ...], ctypes.Array[ctypes.c_int64]] = {}

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
        out_TO, x_TI = rows_of(out_TO), rows_of(x_TI)
        if starts not in self._starts:  # no tensor: a capture would take its making down
            self._starts[starts] = (ctypes.c_int64 * len(starts))(*starts)
        starts_P = self._starts[starts]
        self._stream.hold(down_NKI, up_NOR, adapters_T, starts_P)
        self._stream.emit(
            self._lora,
            x_TI.data_ptr(),
            x_TI.stride(0),
            down_NKI.data_ptr(),
            up_NOR.data_ptr(),
            adapters_T.data_ptr(),
            ctypes.addressof(starts_P),
            out_TO.data_ptr(),
            out_TO.stride(0),
            x_TI.shape[0],
            x_TI.shape[1],
            *up_NOR.shape[1:],
            len(starts),
        )
        return out_TO
