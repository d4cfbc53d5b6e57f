"""Drafting in native code, so that captured steps with drafts stay native from end to end.

Shapes as in :mod:`headstock.ops.drafts`: S slots, R rows, L tokens of a request, K drafts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops import drafts, steps
from headstock.ops.offers import computes
from headstock.ops.steps import Slots, StepInputs
from headstock_xeon.kernels.base import INT32, Kernels
from headstock_xeon.stream import rows_of, strided


class DraftKernels(Kernels):
    """What proposes tokens and what accepts them."""

    @computes(steps.accept_drafts, INT32)
    def accept_drafts(self, drawn_RJ: Tensor, drafts_RK: Tensor, num_draws_R: Tensor) -> Tensor:
        num_rows, num_drafts = drafts_RK.shape
        accepted_R = self._stream.empty((num_rows,), torch.int32)
        given = (drawn_RJ.contiguous(), *strided(drafts_RK), num_draws_R)
        self._stream.emit("accept", *given, accepted_R, num_drafts, num_rows)
        return accepted_R

    @computes(steps.spread_draws, INT32)
    def spread_draws(
        self, slots_R: Tensor, num_outputs_S: Tensor, *, num_draws: int
    ) -> tuple[Tensor, Tensor]:
        num_rows = slots_R.shape[0]
        spread_S = self._stream.empty((num_rows * num_draws,), torch.int32)
        outputs_S = self._stream.empty((num_rows * num_draws,), torch.int64)
        parts = (slots_R, num_outputs_S, spread_S, outputs_S)
        self._stream.emit("spread", *parts, num_draws, num_rows)
        return spread_S, outputs_S

    @computes(drafts.append_outputs, INT32)
    def append_outputs(
        self, histories_SL: Tensor, slots: Slots, inputs: StepInputs, outbox_NRO: Tensor
    ) -> tuple[Tensor, Tensor]:
        num_rows = inputs.draw_slots_R.shape[0]
        known_R = self._stream.empty((num_rows,), torch.int32)
        histories = (histories_SL, histories_SL.stride(0), slots.lengths_S)
        outbox = (*outbox_of(outbox_NRO), slots.cursor_1)
        self._stream.emit("append", *histories, inputs.draw_slots_R, *outbox, known_R, num_rows)
        return histories_SL, known_R

    @computes(drafts.draft_ngrams, INT32)
    def draft_ngrams(
        self,
        histories_SL: Tensor,
        slots_R: Tensor,
        known_R: Tensor,
        *,
        max_n: int,
        min_n: int,
        num_drafts: int,
    ) -> Tensor:
        num_rows = slots_R.shape[0]
        drafts_RK = self._stream.empty((num_rows, num_drafts), torch.int32)
        given = (histories_SL, histories_SL.stride(0), slots_R, known_R, max_n, min_n)
        self._stream.emit("ngrams", *given, drafts_RK, num_drafts, num_rows)
        return drafts_RK

    @computes(drafts.enter_drafts, INT32)
    def enter_drafts(
        self,
        drafts_RK: Tensor,
        slots: Slots,
        inputs: StepInputs,
        outbox_NRO: Tensor,
        *,
        vocab_size: int,
    ) -> tuple[Slots, Tensor]:
        assert drafts_RK.is_contiguous(), "drafts come in rows"
        num_rows, num_drafts = drafts_RK.shape
        self._stream.hold(drafts_RK)
        given = (drafts_RK, inputs.draw_slots_R, slots.drafts_SK, num_drafts, vocab_size)
        outbox = (*outbox_of(outbox_NRO), outbox_NRO.shape[2] - 1, slots.cursor_1)
        self._stream.emit("enter", *given, *outbox, num_rows)
        return slots, outbox_NRO

    @computes(drafts.keep_accepted, INT32)
    def keep_accepted(self, drawn_RJ: Tensor, accepted_R: Tensor) -> Tensor:
        drawn_RJ = drawn_RJ.contiguous()
        kept_S = self._stream.empty((drawn_RJ.numel(),), torch.int64)
        self._stream.emit("keep", drawn_RJ, accepted_R, kept_S, *drawn_RJ.shape, steps.FAULTY)
        return kept_S

    @computes(drafts.count_drafts, INT32)
    def count_drafts(self, counts_SV: Tensor, drafts_RK: Tensor) -> Tensor:
        """Count the drafts before each position as if they were drawn, in place. [S, V]"""
        counts_SV = rows_of(counts_SV)
        rows = (*strided(counts_SV), *strided(drafts_RK))
        self._stream.emit("count_drafts", *rows, *drafts_RK.shape)
        return counts_SV


def outbox_of(outbox_NRO: Tensor) -> tuple[Tensor, int, int, int]:
    """Return what instructions say of the outbox: where it is, its strides, how many steps."""
    return outbox_NRO, outbox_NRO.stride(0), outbox_NRO.stride(1), outbox_NRO.shape[0]
