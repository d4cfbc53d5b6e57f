"""What surrounds the model in a step, so that a captured one is native from end to end.

Shapes as in :mod:`headstock.ops.steps`: S slots, T tokens, R rows, P pages, E stop ids, V ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headstock.ops import steps
from headstock.ops.attention import StepBatch
from headstock.ops.offers import computes
from headstock.ops.steps import Slots, StepInputs
from headstock_xeon.kernels.base import FLOAT32, INT32, Kernels
from headstock_xeon.kernels.drafts import outbox_of
from headstock_xeon.stream import rows_of, strided


class StepKernels(Kernels):
    """From the slot table to a step's batch, and from its draws back."""

    @computes(steps.place_step, INT32)
    def place_step(
        self, slots: Slots, inputs: StepInputs, ids_T: Tensor, batch: StepBatch
    ) -> tuple[Tensor, StepBatch]:
        counts = (inputs.slots_R.shape[0], ids_T.shape[0])
        rows = (inputs.slots_R, inputs.query_starts_R1)
        known = (inputs.host_ids_T, slots.lengths_S, slots.done_S, slots.last_ids_S)
        first, *others = zip(batch.groups, slots.tables, slots.page_sizes, strict=True)
        view, table_SP, page_size = first
        table_RP = view.page_table_RP
        to_view = (table_RP, table_RP.stride(0), table_RP.shape[1], *counts, page_size)
        self._stream.emit(
            "place",
            *(*rows, *known, table_SP, table_SP.stride(0), ids_T, batch.positions_T),
            *(batch.row_of_token_T, view.write_slots_T, batch.kv_lengths_R, *to_view),
            *(slots.drafts_SK, slots.drafts_SK.shape[1], slots.adapters_S, batch.adapters_R),
        )
        for view, table_SP, page_size in others:
            table_RP = view.page_table_RP
            to_view = (table_RP, table_RP.stride(0), table_RP.shape[1], *counts, page_size)
            self._stream.emit(
                "place_view",
                *(*rows, slots.done_S, batch.positions_T, table_SP, table_SP.stride(0)),
                *(view.write_slots_T, *to_view),
            )
        return ids_T, batch

    @computes(steps.take_rows, INT32)
    def take_rows(self, x: Tensor, index_R: Tensor, *, dim: int) -> Tensor:
        if dim != 0 or not x[:1].is_contiguous() or index_R.stride(0) != 1:
            return steps.take_rows.reference(x, index_R, dim=dim)
        return self._take(x, index_R, 0)

    @computes(steps.last_of_rows, FLOAT32)
    def last_of_rows(self, x_TD: Tensor, query_starts_R1: Tensor) -> Tensor:
        return self._take(rows_of(x_TD), query_starts_R1[1:], -1)

    def _take(self, x: Tensor, index_R: Tensor, shift: int) -> Tensor:
        rows, width = index_R.shape[0], x.element_size()
        taken = self._stream.empty((rows, *x.shape[1:]), x.dtype)
        given = (x, x.stride(0) * width, index_R, index_R.element_size(), shift)
        sizes = (taken.stride(0) * width, rows, x.shape[1:].numel() * width)
        self._stream.emit("take", *given, taken, *sizes)
        return taken

    @computes(steps.keep_rows, FLOAT32)
    def keep_rows(self, x_RV: Tensor, into_RV: Tensor) -> None:
        if x_RV.dtype != into_RV.dtype or x_RV.stride(-1) != 1 or into_RV.stride(-1) != 1:
            steps.keep_rows.reference(x_RV, into_RV)
            return
        width = x_RV.element_size()
        given = (x_RV, x_RV.stride(0) * width, into_RV, into_RV.stride(0) * width)
        self._stream.emit("copy", *given, x_RV.shape[0], x_RV.shape[1] * width)

    @computes(steps.mark_faults, FLOAT32)
    def mark_faults(self, drawn_R: Tensor, logits_RV: Tensor) -> Tensor:
        marked_R = self._stream.empty(drawn_R.shape, torch.int64)
        self._stream.emit("mark", drawn_R, *strided(logits_RV), marked_R, drawn_R.shape[0])
        return marked_R

    @computes(steps.forbid_stops, FLOAT32)
    def forbid_stops(
        self,
        logits_RV: Tensor,
        stop_ids_RE: Tensor,
        num_outputs_R: Tensor,
        min_outputs_R: Tensor,
    ) -> Tensor:
        """Make stop ids impossible, in place, for rows with fewer outputs than they must have."""
        assert logits_RV.stride(-1) == 1, "logits come in rows"
        stops = (stop_ids_RE, stop_ids_RE.shape[1], num_outputs_R, min_outputs_R)
        self._stream.emit("forbid", logits_RV, logits_RV.stride(0), *stops, logits_RV.shape[0])
        return logits_RV

    @computes(steps.count_outputs, INT32)
    def count_outputs(
        self, drawn_R: Tensor, slots_R: Tensor, done_S: Tensor, output_counts_SV: Tensor
    ) -> None:
        counts = (output_counts_SV, output_counts_SV.stride(0))
        self._stream.emit("count", drawn_R, slots_R, done_S, *counts, drawn_R.shape[0])

    @computes(steps.advance_lengths, INT32)
    def advance_lengths(self, slots: Slots, inputs: StepInputs, batch: StepBatch) -> Slots:
        given = (inputs.slots_R, batch.kv_lengths_R, slots.done_S, slots.lengths_S)
        self._stream.emit("advance", *given, inputs.slots_R.shape[0])
        return slots

    @computes(steps.settle_step, INT32)
    def settle_step(
        self,
        drawn_RJ: Tensor,
        accepted_R: Tensor,
        slots: Slots,
        inputs: StepInputs,
        outbox_NRO: Tensor,
    ) -> tuple[Slots, Tensor]:
        assert drawn_RJ.is_contiguous(), "draws come in rows"
        num_rows, num_draws = drawn_RJ.shape
        stops = (slots.max_outputs_S, slots.stop_ids_SE, slots.stop_ids_SE.shape[1])
        entered = (slots.last_ids_S, slots.num_outputs_S, slots.done_S, slots.lengths_S)
        self._stream.emit(
            "settle",
            *(drawn_RJ, num_draws, accepted_R, inputs.draw_slots_R, inputs.num_draws_R),
            *(*stops, *entered, *outbox_of(outbox_NRO), slots.cursor_1, num_rows),
        )
        return slots, outbox_NRO

    @computes(steps.take_draws, FLOAT32)
    def take_draws(
        self, x_TD: Tensor, query_starts_R1: Tensor, num_draws_R: Tensor, *, num_draws: int
    ) -> Tensor:
        x_TD = rows_of(x_TD)
        rows, width = num_draws_R.shape[0], x_TD.element_size()
        taken_SD = self._stream.empty((rows * num_draws, x_TD.shape[1]), x_TD.dtype)
        parts = (x_TD, x_TD.stride(0) * width, query_starts_R1, num_draws_R, taken_SD)
        self._stream.emit("take_draws", *parts, rows, num_draws, x_TD.shape[1] * width)
        return taken_SD
