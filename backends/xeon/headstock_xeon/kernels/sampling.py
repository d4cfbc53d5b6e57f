"""From logits to token ids. Shapes: S rows that sample, V token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock_xeon.stream import rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice


class SamplingKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        self._argmax = device.stream.kernel("argmax")

    def argmax_tokens(self, logits_SV: Tensor) -> Tensor:
        """Return the id of each row's highest logit; of equals, the lowest id. int64. [S]"""
        logits_SV = rows_of(logits_SV)
        rows, size = logits_SV.shape
        ids_S = self._stream.empty((rows,), torch.int64)
        self._stream.emit(
            self._argmax, logits_SV.data_ptr(), logits_SV.stride(0), ids_S.data_ptr(), rows, size
        )
        return ids_S
