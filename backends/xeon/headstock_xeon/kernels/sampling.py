"""From logits to token ids. Shapes: S rows that sample, V token ids, B biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock_xeon.stream import rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice


class SamplingKernels:
    """Function ops bound to a device's stream; those that change logits work in place."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._argmax, self._draw = kernel("argmax"), kernel("draw")
        self._penalise, self._bias = kernel("penalise"), kernel("bias")

    def argmax_tokens(self, logits_SV: Tensor) -> Tensor:
        """Return the id of each row's highest logit; of equals, the lowest id. int64. [S]"""
        logits_SV = rows_of(logits_SV)
        rows, size = logits_SV.shape
        ids_S = self._stream.empty((rows,), torch.int64)
        self._stream.emit(
            self._argmax, logits_SV.data_ptr(), logits_SV.stride(0), ids_S.data_ptr(), rows, size
        )
        return ids_S

    def draw_tokens(
        self,
        logits_SV: Tensor,
        temperature_S: Tensor,
        top_k_S: Tensor,
        top_p_S: Tensor,
        min_p_S: Tensor,
        seeds_S: Tensor,
        indexes_S: Tensor,
    ) -> Tensor:
        """Draw one id a row by inverse transform over the filtered distribution. int64. [S]"""
        logits_SV = rows_of(logits_SV)
        rows, size = logits_SV.shape
        settings = (temperature_S, top_k_S, top_p_S, min_p_S, seeds_S, indexes_S)
        settings = tuple(setting.contiguous() for setting in settings)
        ids_S = self._stream.empty((rows,), torch.int64)
        self._stream.emit(
            self._draw,
            logits_SV.data_ptr(),
            logits_SV.stride(0),
            *(setting.data_ptr() for setting in settings),
            ids_S.data_ptr(),
            rows,
            size,
        )
        return ids_S

    def apply_penalties(
        self,
        logits_SV: Tensor,
        output_counts_SV: Tensor,
        prompt_mask_SV: Tensor,
        repetition_S: Tensor,
        frequency_S: Tensor,
        presence_S: Tensor,
    ) -> Tensor:
        """Lower the logits of tokens that the request already has. [S, V]"""
        logits_SV = rows_of(logits_SV)
        counts_SV, mask_SV = output_counts_SV.contiguous(), prompt_mask_SV.contiguous()
        factors = [f.contiguous() for f in (repetition_S, frequency_S, presence_S)]
        self._stream.emit(
            self._penalise,
            logits_SV.data_ptr(),
            logits_SV.stride(0),
            counts_SV.data_ptr(),
            mask_SV.data_ptr(),
            *(factor.data_ptr() for factor in factors),
            *logits_SV.shape,
        )
        return logits_SV

    def add_bias(self, logits_SV: Tensor, ids_SB: Tensor, biases_SB: Tensor) -> Tensor:
        """Add to the logits of listed ids. [S, V]"""
        logits_SV = rows_of(logits_SV)
        ids_SB, biases_SB = ids_SB.contiguous(), biases_SB.contiguous()
        self._stream.emit(
            self._bias,
            logits_SV.data_ptr(),
            logits_SV.stride(0),
            ids_SB.data_ptr(),
            biases_SB.data_ptr(),
            ids_SB.shape[1],
            logits_SV.shape[0],
        )
        return logits_SV
