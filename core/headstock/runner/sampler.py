"""From logits to ids in the slot table: only what the step's rows ask for is computed.

Shapes: R rows of the step, V token ids, S slots, N steps that the outbox keeps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops.communication import Group
from headstock.plugins.device import Device
from headstock.runner.rows import BIAS, DRAW, FLOOR, LOGPROBS, PENALTIES
from headstock.runner.slots import FLOATS
from headstock.runner.staging import Staging
from headstock.runner.step_ops import StepOps
from headstock.wire.steps import RunnerLimits


class Sampler:
    """Draws one id a row and enters it into the slot table and the outbox.

    Rows that draw nothing have the null slot, whose entry in the table is never live.

    Attributes:
        outbox_NR2: What steps drew, by step number modulo N: id or code, whether done. int32.
        raw_logits_RV: The last step's logits as the model gave them, when that step's features
            have ``logprobs``. float32.
    """

    def __init__(
        self,
        device: Device,
        ops: StepOps,
        staging: Staging,
        group: Group,
        *,
        limits: RunnerLimits,
        max_rows: int,
    ) -> None:
        self._device = device
        self._ops = ops
        self._table = staging.table
        self._extras = staging.extras
        self._group = group
        self._logits_shape = (max_rows, limits.vocab_size)
        self.outbox_NR2 = device.empty((limits.depth + 1, max_rows, 2), torch.int32).zero_()
        self.raw_logits_RV: Tensor | None = None

    def prepare(self, features: frozenset[str]) -> None:
        """Make the buffers that ``features`` need; before the step is run or captured."""
        if LOGPROBS in features and self.raw_logits_RV is None:
            self.raw_logits_RV = self._device.empty(self._logits_shape, torch.float32)

    def run(self, logits_RV: Tensor, slots_R: Tensor, features: frozenset[str]) -> None:
        """Draw, and settle in the table. May be captured.

        Args:
            logits_RV: float32; may be overwritten. [R, V]
            slots_R: int32. [R]
            features: Of the step.
        """
        ops, table = self._ops, self._table
        num_rows = slots_R.shape[0]
        if LOGPROBS in features:
            assert self.raw_logits_RV is not None, "logprobs were not prepared for"
            ops.keep_rows(logits_RV, self.raw_logits_RV[:num_rows])
        logits_RV = self._shape_logits(logits_RV, slots_R, features)
        drawn_R = self._draw(logits_RV, slots_R, features)
        drawn_R = self._group.broadcast(ops.mark_faults(drawn_R, logits_RV))
        if PENALTIES in features:
            assert self._extras.penalties is not None, "penalties were not admitted"
            counts_SV = self._extras.penalties.output_counts_SV
            ops.count_outputs(drawn_R, slots_R, table.done_S, counts_SV)
        ops.settle_step(
            drawn_R,
            slots_R,
            table.max_outputs_S,
            table.stop_ids_SE,
            table.last_ids_S,
            table.num_outputs_S,
            table.done_S,
            self.outbox_NR2[:, :num_rows],
            table.cursor_1,
        )

    def _shape_logits(self, logits_RV: Tensor, slots_R: Tensor, features: frozenset[str]) -> Tensor:
        """Apply what changes logits before temperature: penalties, bias, ids not allowed yet."""
        ops, table, extras = self._ops, self._table, self._extras
        take = ops.take_rows
        if PENALTIES in features:
            assert extras.penalties is not None, "penalties were not admitted"
            logits_RV = ops.apply_penalties(
                logits_RV,
                take(extras.penalties.output_counts_SV, slots_R, dim=0),
                take(extras.penalties.prompt_mask_SV, slots_R, dim=0),
                *(self._float(name, slots_R) for name in ("repetition", "frequency", "presence")),
            )
        if BIAS in features:
            assert extras.biases is not None, "biases were not admitted"
            ids_RB = take(extras.biases.ids_SB, slots_R, dim=0)
            biases_RB = take(extras.biases.biases_SB, slots_R, dim=0)
            logits_RV = ops.add_bias(logits_RV, ids_RB, biases_RB)
        if FLOOR in features:
            logits_RV = ops.forbid_stops(
                logits_RV,
                take(table.stop_ids_SE, slots_R, dim=0),
                take(table.num_outputs_S, slots_R, dim=0),
                take(table.min_outputs_S, slots_R, dim=0),
            )
        return logits_RV

    def _draw(self, logits_RV: Tensor, slots_R: Tensor, features: frozenset[str]) -> Tensor:
        if DRAW not in features:
            return self._ops.argmax_tokens(logits_RV)
        take, table = self._ops.take_rows, self._table
        return self._ops.draw_tokens(
            logits_RV,
            self._float("temperature", slots_R),
            take(table.top_k_S, slots_R, dim=0),
            self._float("top_p", slots_R),
            self._float("min_p", slots_R),
            take(table.seeds_S, slots_R, dim=0),
            take(table.num_outputs_S, slots_R, dim=0),
        )

    def _float(self, name: str, slots_R: Tensor) -> Tensor:
        return self._ops.take_rows(self._table.floats_FS[FLOATS.index(name)], slots_R, dim=0)
