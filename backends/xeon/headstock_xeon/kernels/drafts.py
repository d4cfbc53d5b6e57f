"""Drafting in native code, so that captured steps with drafts stay native from end to end.

Shapes as in :mod:`headstock.ops.drafts`: S slots, R rows, L tokens of a request, K drafts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops import steps

if TYPE_CHECKING:
    from headstock.ops.steps import Slots, StepInputs
    from headstock_xeon.device import XeonDevice


class DraftKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._accept, self._spread = kernel("accept"), kernel("spread")
        self._append, self._enter = kernel("append"), kernel("enter")
        self._ngrams = kernel("ngrams")

    def accept_drafts(self, drawn_RJ: Tensor, drafts_RK: Tensor, num_draws_R: Tensor) -> Tensor:
        """Return how many of a row's draws count. int32. [R]"""
        if not drawn_RJ.is_contiguous() or drafts_RK.stride(-1) != 1:
            return steps.accept_drafts.reference(drawn_RJ, drafts_RK, num_draws_R)
        num_rows, num_drafts = drafts_RK.shape
        accepted_R = self._stream.empty((num_rows,), torch.int32)
        self._stream.emit(
            self._accept,
            drawn_RJ.data_ptr(),
            drafts_RK.data_ptr(),
            drafts_RK.stride(0),
            num_draws_R.data_ptr(),
            accepted_R.data_ptr(),
            num_drafts,
            num_rows,
        )
        return accepted_R

    def spread_draws(
        self, slots_R: Tensor, num_outputs_S: Tensor, *, num_draws: int
    ) -> tuple[Tensor, Tensor]:
        """Return, of every position that rows draw from, its slot and its output's index."""
        count = slots_R.shape[0] * num_draws
        spread_S = self._stream.empty((count,), torch.int32)
        outputs_S = self._stream.empty((count,), torch.int64)
        self._stream.emit(
            self._spread,
            slots_R.data_ptr(),
            num_outputs_S.data_ptr(),
            spread_S.data_ptr(),
            outputs_S.data_ptr(),
            num_draws,
            slots_R.shape[0],
        )
        return spread_S, outputs_S

    def append_outputs(
        self, histories_SL: Tensor, slots: Slots, inputs: StepInputs, outbox_NRO: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Append what the step that settled last drew to the histories of its slots."""
        num_rows = inputs.draw_slots_R.shape[0]
        known_R = self._stream.empty((num_rows,), torch.int32)
        self._stream.emit(
            self._append,
            histories_SL.data_ptr(),
            histories_SL.stride(0),
            slots.lengths_S.data_ptr(),
            inputs.draw_slots_R.data_ptr(),
            outbox_NRO.data_ptr(),
            outbox_NRO.stride(0),
            outbox_NRO.stride(1),
            outbox_NRO.shape[0],
            slots.cursor_1.data_ptr(),
            known_R.data_ptr(),
            num_rows,
        )
        return histories_SL, known_R

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
        """Draft what followed when a row's last tokens occurred before. int32. [R, K]"""
        num_rows = slots_R.shape[0]
        drafts_RK = self._stream.empty((num_rows, num_drafts), torch.int32)
        self._stream.emit(
            self._ngrams,
            histories_SL.data_ptr(),
            histories_SL.stride(0),
            slots_R.data_ptr(),
            known_R.data_ptr(),
            max_n,
            min_n,
            drafts_RK.data_ptr(),
            num_drafts,
            num_rows,
        )
        return drafts_RK

    def enter_drafts(
        self,
        drafts_RK: Tensor,
        slots: Slots,
        inputs: StepInputs,
        outbox_NRO: Tensor,
        *,
        vocab_size: int,
    ) -> tuple[Slots, Tensor]:
        """Enter the drafts for the rows' next step into the slot table."""
        assert drafts_RK.is_contiguous(), "drafts come in rows"
        self._stream.hold(drafts_RK)
        self._stream.emit(
            self._enter,
            drafts_RK.data_ptr(),
            inputs.draw_slots_R.data_ptr(),
            slots.drafts_SK.data_ptr(),
            drafts_RK.shape[1],
            vocab_size,
            outbox_NRO.data_ptr(),
            outbox_NRO.stride(0),
            outbox_NRO.stride(1),
            outbox_NRO.shape[0],
            outbox_NRO.shape[2] - 1,
            slots.cursor_1.data_ptr(),
            drafts_RK.shape[0],
        )
        return slots, outbox_NRO
