"""What is chosen from the results of larger ops: allowed ids, draws, drafts that count.

Shapes: T tokens, D features, R rows, V ids, K drafts, J draws of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops import drafts, outputs, steps
from headstock_xeon.kernels.offers import INT32, Kernels, computes
from headstock_xeon.stream import strided


class ChoiceKernels(Kernels):
    """What is chosen from the results of larger ops."""

    @computes(outputs.as_float32)
    def as_float32(self, x_TA: Tensor) -> Tensor:
        """Return ``x_TA``, which is in float32 here."""
        return x_TA

    @computes(steps.apply_masks)
    def apply_masks(self, logits_RV: Tensor, words_RW: Tensor) -> Tensor:
        masked_RV = self._stream.empty(logits_RV.shape)
        rows = (*strided(logits_RV), *strided(words_RW))
        self._stream.emit("mask", *rows, masked_RV, *masked_RV.shape)
        return masked_RV

    @computes(steps.take_draws)
    def take_draws(
        self, x_TD: Tensor, query_starts_R1: Tensor, num_draws_R: Tensor, *, num_draws: int
    ) -> Tensor:
        if x_TD.stride(-1) != 1:
            return steps.take_draws.reference(
                x_TD, query_starts_R1, num_draws_R, num_draws=num_draws
            )
        rows, width = num_draws_R.shape[0], x_TD.element_size()
        taken_SD = self._stream.empty((rows * num_draws, x_TD.shape[1]), x_TD.dtype)
        parts = (x_TD, x_TD.stride(0) * width, query_starts_R1, num_draws_R, taken_SD)
        self._stream.emit("take_draws", *parts, rows, num_draws, x_TD.shape[1] * width)
        return taken_SD

    @computes(drafts.keep_accepted, INT32)
    def keep_accepted(self, drawn_RJ: Tensor, accepted_R: Tensor) -> Tensor:
        if not drawn_RJ.is_contiguous():
            return drafts.keep_accepted.reference(drawn_RJ, accepted_R)
        kept_S = self._stream.empty((drawn_RJ.numel(),), torch.int64)
        self._stream.emit("keep", drawn_RJ, accepted_R, kept_S, *drawn_RJ.shape, steps.FAULTY)
        return kept_S

    @computes(drafts.count_drafts, INT32)
    def count_drafts(self, counts_SV: Tensor, drafts_RK: Tensor) -> Tensor:
        """Count the drafts before each position as if they were drawn, in place. [S, V]"""
        if counts_SV.stride(-1) != 1 or drafts_RK.stride(-1) != 1:
            return drafts.count_drafts.reference(counts_SV, drafts_RK)
        rows = (counts_SV, counts_SV.stride(0), drafts_RK, drafts_RK.stride(0))
        self._stream.emit("count_drafts", *rows, *drafts_RK.shape)
        return counts_SV
