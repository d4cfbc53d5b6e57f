"""From hidden states to ids in the slot table: only what the step's rows ask for is computed.

Shapes: R rows of the step, J positions that a row draws from, S = R * J, V token ids, N steps that
the outbox keeps, W words of a mask.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headstock.ops.steps import Slots, StepInputs
from headstock.plugins.device import Device
from headstock.runner.rows import BIAS, DRAFTS, FLOOR, LOGPROBS, MASKS, PENALTIES, RANDOM
from headstock.runner.step import ModelParts, StepOps
from headstock.runner.upload import Upload
from headstock.wire.steps import RunnerLimits

NARROW_KINDS = frozenset({DRAFTS})
"""Draw kinds of steps that only need to know which logit is the highest."""

ALL_ALLOWED = -1
"""A word of a mask that allows all of its 32 ids."""


class Sampler:
    """Draws from logits and enters what counts into the slot table and the outbox.

    Rows that draw nothing have the null slot, whose entry in the table is never live.

    Attributes:
        outbox_NRO: What steps drew, by step number modulo N: how many ids count, whether the slot
            is done, the ids; with a drafter, how many drafts the row has for its next step.
            int32. [N, R, 2 + J, or 3 + J with a drafter]
        raw_logits_SV: The last step's logits as the model gave them, when that step's draw kinds
            have ``logprobs``. float32.
        drafter: Drafts for the next step; None: nothing does.
    """

    def __init__(
        self,
        device: Device,
        parts: ModelParts,
        ops: StepOps,
        upload: Upload,
        *,
        limits: RunnerLimits,
        max_rows: int,
    ) -> None:
        self._device = device
        self._model = parts.model
        self._ops = ops
        self._table, self._optional, self._arrays = upload.table, upload.optional, upload.arrays
        self._group = parts.ranks
        self.drafter = parts.drafter
        self._vocab_size = limits.vocab_size
        self._max_draws = limits.max_drafts + 1
        draft_rows = min(max_rows, limits.max_draft_rows)
        self._max_positions = max(max_rows, draft_rows * self._max_draws)
        num_words = 2 + self._max_draws + (self.drafter is not None)
        shape = (limits.depth + 1, max_rows, num_words)
        self.outbox_NRO = device.empty(shape, torch.int32).zero_()
        self._ones_R = device.empty((max_rows,), torch.int32).fill_(1)
        self.raw_logits_SV: Tensor | None = None
        self._masks_SW: Tensor | None = None

    def prepare(self, kinds: frozenset[str]) -> None:
        """Make the buffers that draw ``kinds`` need; before the step is run or captured."""
        if LOGPROBS in kinds and self.raw_logits_SV is None:
            shape = (self._max_positions, self._vocab_size)
            self.raw_logits_SV = self._device.empty(shape, torch.float32)
        if MASKS in kinds and self._masks_SW is None:
            shape = (self._max_positions, -(-self._vocab_size // 32))
            self._masks_SW = self._device.empty(shape, torch.int32).fill_(ALL_ALLOWED)
        if PENALTIES in kinds:
            self._optional.penalty_table()
        if BIAS in kinds:
            self._optional.bias_table()

    def send_masks(self, words_SW: np.ndarray) -> None:
        """Queue the copy of the masks of a step's positions. int32. [S, W]"""
        assert self._masks_SW is not None, "masks were not prepared for"
        self._masks_SW[: len(words_SW)].copy_(self._arrays.send(words_SW))

    def run(
        self, hidden_SD: Tensor, inputs: StepInputs, num_draws: int, kinds: frozenset[str]
    ) -> None:
        """Draw, and settle in the table. May be captured.

        Args:
            hidden_SD: Of the positions that rows draw from. [R * J, D]
            inputs: The rows.
            num_draws: J.
            kinds: Draw kinds of the step.
        """
        ops, table = self._ops, self._table
        is_narrow = ops.takes_narrow and kinds <= NARROW_KINDS
        logits_SV = self._model.scores(hidden_SD) if is_narrow else self._model.logits(hidden_SD)
        slots_S, outputs_S = self._positions(inputs, num_draws, kinds)
        if LOGPROBS in kinds:
            assert self.raw_logits_SV is not None, "logprobs were not prepared for"
            ops.keep_rows(logits_SV, self.raw_logits_SV[: logits_SV.shape[0]])
        drafts_RK = self._drafts(inputs, num_draws)
        logits_SV = self._shape_logits(logits_SV, slots_S, outputs_S, drafts_RK, kinds)
        drawn_S = self._draw(logits_SV, slots_S, outputs_S, kinds)
        drawn_S = self._group.broadcast(ops.mark_faults(drawn_S, logits_SV))
        drawn_RJ = drawn_S.view(-1, num_draws)
        accepted_R = self._ones_R[: drawn_RJ.shape[0]]
        if drafts_RK is not None:
            accepted_R = ops.accept_drafts(drawn_RJ, drafts_RK, inputs.num_draws_R)
        if PENALTIES in kinds:
            self._count(drawn_RJ, accepted_R, slots_S)
        table.slots, self.outbox_NRO = self._settle(drawn_RJ, accepted_R, inputs)
        if DRAFTS in kinds:
            table.slots, self.outbox_NRO = self._draft(inputs)

    def _positions(
        self, inputs: StepInputs, num_draws: int, kinds: frozenset[str]
    ) -> tuple[Tensor, Tensor | None]:
        """Return, of each position, its slot and, if drawing asks for it, its output's index."""
        slots_R, num_outputs_S = inputs.draw_slots_R, self._table.slots.num_outputs_S
        if num_draws > 1:
            return self._ops.spread_draws(slots_R, num_outputs_S, num_draws=num_draws)
        if RANDOM in kinds or FLOOR in kinds:
            return slots_R, self._ops.take_rows(num_outputs_S, slots_R, dim=0)
        return slots_R, None

    def _drafts(self, inputs: StepInputs, num_draws: int) -> Tensor | None:
        """Return what the step computed after each row's first position; None: nothing. [R, K]"""
        if num_draws == 1:
            return None
        drafts_SK = self._table.slots.drafts_SK
        return self._ops.take_rows(drafts_SK, inputs.draw_slots_R, dim=0)[:, : num_draws - 1]

    def _settle(
        self, drawn_RJ: Tensor, accepted_R: Tensor, inputs: StepInputs
    ) -> tuple[Slots, Tensor]:
        outbox = self.outbox_NRO[:, : drawn_RJ.shape[0]]
        slots, _ = self._ops.settle_step(drawn_RJ, accepted_R, self._table.slots, inputs, outbox)
        return slots, self.outbox_NRO

    def _draft(self, inputs: StepInputs) -> tuple[Slots, Tensor]:
        """Append what was drawn to the rows' histories, and draft for their next step."""
        ops, histories, drafter = self._ops, self._optional.histories, self.drafter
        assert histories is not None, "nothing is drafted here"
        assert drafter is not None, "nothing is drafted here"
        outbox = self.outbox_NRO[:, : inputs.slots_R.shape[0]]
        histories.histories_SL, known_R = ops.append_outputs(
            histories.histories_SL, self._table.slots, inputs, outbox
        )
        drafts_RK = drafter.draft(histories.histories_SL, inputs.draw_slots_R, known_R)
        slots, _ = ops.enter_drafts(
            drafts_RK, self._table.slots, inputs, outbox, vocab_size=self._vocab_size
        )
        return slots, self.outbox_NRO

    def _count(self, drawn_RJ: Tensor, accepted_R: Tensor, slots_S: Tensor) -> None:
        """Count what was drawn for the penalties.

        What comes after a stop id counts too; its slot is done then, and draws no more.
        """
        assert self._optional.penalties is not None, "penalties were not admitted"
        counts_SV = self._optional.penalties.output_counts_SV
        drawn_S = drawn_RJ.flatten()
        if drawn_RJ.shape[1] > 1:
            drawn_S = self._ops.keep_accepted(drawn_RJ, accepted_R)
        self._ops.count_outputs(drawn_S, slots_S, self._table.slots.done_S, counts_SV)

    def _shape_logits(
        self,
        logits_SV: Tensor,
        slots_S: Tensor,
        outputs_S: Tensor | None,
        drafts_RK: Tensor | None,
        kinds: frozenset[str],
    ) -> Tensor:
        """Apply what changes logits before temperature: penalties, bias, ids not allowed."""
        ops, slots, optional = self._ops, self._table.slots, self._optional
        take = ops.take_rows
        if PENALTIES in kinds:
            assert optional.penalties is not None, "penalties were not admitted"
            counts_SV = take(optional.penalties.output_counts_SV, slots_S, dim=0)
            if drafts_RK is not None:
                counts_SV = ops.count_drafts(counts_SV, drafts_RK)
            logits_SV = ops.apply_penalties(
                logits_SV,
                counts_SV,
                take(optional.penalties.prompt_mask_SV, slots_S, dim=0),
                take(slots.repetition_S, slots_S, dim=0),
                take(slots.frequency_S, slots_S, dim=0),
                take(slots.presence_S, slots_S, dim=0),
            )
        if BIAS in kinds:
            assert optional.biases is not None, "biases were not admitted"
            ids_SB = take(optional.biases.ids_SB, slots_S, dim=0)
            biases_SB = take(optional.biases.biases_SB, slots_S, dim=0)
            logits_SV = ops.add_bias(logits_SV, ids_SB, biases_SB)
        if FLOOR in kinds:
            stop_ids_SE = take(slots.stop_ids_SE, slots_S, dim=0)
            min_outputs_S = take(slots.min_outputs_S, slots_S, dim=0)
            logits_SV = ops.forbid_stops(logits_SV, stop_ids_SE, outputs_S, min_outputs_S)
        if MASKS in kinds:
            assert self._masks_SW is not None, "masks were not prepared for"
            logits_SV = ops.apply_masks(logits_SV, self._masks_SW[: logits_SV.shape[0]])
        return logits_SV

    def _draw(
        self, logits_SV: Tensor, slots_S: Tensor, outputs_S: Tensor | None, kinds: frozenset[str]
    ) -> Tensor:
        if RANDOM not in kinds:
            return self._ops.argmax_tokens(logits_SV)
        take, slots = self._ops.take_rows, self._table.slots
        return self._ops.draw_tokens(
            logits_SV,
            take(slots.temperature_S, slots_S, dim=0),
            take(slots.top_k_S, slots_S, dim=0),
            take(slots.top_p_S, slots_S, dim=0),
            take(slots.min_p_S, slots_S, dim=0),
            take(slots.seeds_S, slots_S, dim=0),
            outputs_S,
        )
