"""What is chosen from the results of larger ops: allowed ids, draws, drafts that count.

Shapes: T tokens, D features, R rows, V ids, K drafts, J draws of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops import drafts, steps
from headstock.ops.steps import FAULTY
from headstock_xeon.stream import rows_of

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice


class ChoiceKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._mask, self._take_draws = kernel("mask"), kernel("take_draws")
        self._keep, self._count_drafts = kernel("keep"), kernel("count_drafts")

    def as_float32(self, x_TA: Tensor) -> Tensor:
        """Return ``x_TA``, which is in float32 here."""
        return x_TA

    def apply_masks(self, logits_RV: Tensor, words_RW: Tensor) -> Tensor:
        """Make ids impossible whose bit is not set. [R, V]"""
        logits_RV, words_RW = rows_of(logits_RV), rows_of(words_RW)
        masked_RV = self._stream.empty(tuple(logits_RV.shape))
        self._stream.emit(
            self._mask,
            logits_RV.data_ptr(),
            logits_RV.stride(0),
            words_RW.data_ptr(),
            words_RW.stride(0),
            masked_RV.data_ptr(),
            *logits_RV.shape,
        )
        return masked_RV

    def take_draws(
        self, x_TD: Tensor, query_starts_R1: Tensor, num_draws_R: Tensor, *, num_draws: int
    ) -> Tensor:
        """Return what the positions have that rows draw from. [R * J, D]"""
        if x_TD.stride(-1) != 1:
            return steps.take_draws.reference(
                x_TD, query_starts_R1, num_draws_R, num_draws=num_draws
            )
        rows, width = num_draws_R.shape[0], x_TD.element_size()
        taken_SD = self._stream.empty((rows * num_draws, x_TD.shape[1]), x_TD.dtype)
        self._stream.emit(
            self._take_draws,
            x_TD.data_ptr(),
            x_TD.stride(0) * width,
            query_starts_R1.data_ptr(),
            num_draws_R.data_ptr(),
            taken_SD.data_ptr(),
            rows,
            num_draws,
            x_TD.shape[1] * width,
        )
        return taken_SD

    def keep_accepted(self, drawn_RJ: Tensor, accepted_R: Tensor) -> Tensor:
        """Return the draws, and ``FAULTY`` for those after the accepted ones. [R * J]"""
        if not drawn_RJ.is_contiguous():
            return drafts.keep_accepted.reference(drawn_RJ, accepted_R)
        kept_S = self._stream.empty((drawn_RJ.numel(),), torch.int64)
        self._stream.emit(
            self._keep,
            drawn_RJ.data_ptr(),
            accepted_R.data_ptr(),
            kept_S.data_ptr(),
            *drawn_RJ.shape,
            FAULTY,
        )
        return kept_S

    def count_drafts(self, counts_SV: Tensor, drafts_RK: Tensor) -> Tensor:
        """Count the drafts before each position as if they were drawn, in place. [S, V]"""
        if counts_SV.stride(-1) != 1 or drafts_RK.stride(-1) != 1:
            return drafts.count_drafts.reference(counts_SV, drafts_RK)
        self._stream.emit(
            self._count_drafts,
            counts_SV.data_ptr(),
            counts_SV.stride(0),
            drafts_RK.data_ptr(),
            drafts_RK.stride(0),
            *drafts_RK.shape,
        )
        return counts_SV
