"""Drafting in native code, so that captured steps with drafts stay native from end to end.

Shapes as in :mod:`headstock.ops.drafts`: S slots, R rows, L tokens of a request, K drafts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops import drafts, steps
from headstock_xeon.kernels.offers import INT32, Kernels, computes

if TYPE_CHECKING:
    from headstock.ops.steps import Slots, StepInputs


class DraftKernels(Kernels):
    """What proposes tokens and what accepts them."""

    @computes(steps.accept_drafts, INT32)
    def accept_drafts(self, drawn_RJ: Tensor, drafts_RK: Tensor, num_draws_R: Tensor) -> Tensor:
        if not drawn_RJ.is_contiguous() or drafts_RK.stride(-1) != 1:
            return steps.accept_drafts.reference(drawn_RJ, drafts_RK, num_draws_R)
        num_rows, num_drafts = drafts_RK.shape
        accepted_R = self._stream.empty((num_rows,), torch.int32)
        given = (drawn_RJ, drafts_RK, drafts_RK.stride(0), num_draws_R)
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


def outbox_of(outbox_NRO: Tensor) -> tuple[Tensor, int, int, int]:
    """Return what instructions say of the outbox: where it is, its strides, how many steps."""
    return outbox_NRO, outbox_NRO.stride(0), outbox_NRO.stride(1), outbox_NRO.shape[0]
