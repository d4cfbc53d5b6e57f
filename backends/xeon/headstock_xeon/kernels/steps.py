"""What surrounds the model in a step, so that a captured one is native from end to end.

Shapes as in :mod:`headstock.ops.steps`: S slots, T tokens, R rows, P pages, E stop ids, V ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops import steps

if TYPE_CHECKING:
    from headstock.ops.attention import StepBatch
    from headstock.ops.steps import Slots, StepInputs
    from headstock_xeon.device import XeonDevice


class StepKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._take, self._copy, self._place = kernel("take"), kernel("copy"), kernel("place")
        self._place_view = kernel("place_view")
        self._advance, self._settle = kernel("advance"), kernel("settle")
        self._count, self._mark, self._forbid = kernel("count"), kernel("mark"), kernel("forbid")

    def place_step(
        self, slots: Slots, inputs: StepInputs, ids_T: Tensor, batch: StepBatch
    ) -> tuple[Tensor, StepBatch]:
        """Work out what a step computes from the slot table."""
        num_rows, num_tokens = inputs.slots_R.shape[0], ids_T.shape[0]
        first, *others = zip(batch.groups, slots.tables, slots.page_sizes, strict=True)
        view, table_SP, page_size = first
        adapters_R = batch.adapters_R
        self._stream.hold(batch)
        self._stream.emit(
            self._place,
            inputs.slots_R.data_ptr(),
            inputs.query_starts_R1.data_ptr(),
            inputs.host_ids_T.data_ptr(),
            slots.lengths_S.data_ptr(),
            slots.done_S.data_ptr(),
            slots.last_ids_S.data_ptr(),
            table_SP.data_ptr(),
            table_SP.stride(0),
            ids_T.data_ptr(),
            batch.positions_T.data_ptr(),
            batch.row_of_token_T.data_ptr(),
            view.write_slots_T.data_ptr(),
            batch.kv_lengths_R.data_ptr(),
            view.page_table_RP.data_ptr(),
            view.page_table_RP.stride(0),
            view.page_table_RP.shape[1],
            num_rows,
            num_tokens,
            page_size,
            slots.drafts_SK.data_ptr(),
            slots.drafts_SK.shape[1],
            slots.adapters_S.data_ptr(),
            0 if adapters_R is None else adapters_R.data_ptr(),
        )
        for view, table_SP, page_size in others:
            self._stream.emit(
                self._place_view,
                inputs.slots_R.data_ptr(),
                inputs.query_starts_R1.data_ptr(),
                slots.done_S.data_ptr(),
                batch.positions_T.data_ptr(),
                table_SP.data_ptr(),
                table_SP.stride(0),
                view.write_slots_T.data_ptr(),
                view.page_table_RP.data_ptr(),
                view.page_table_RP.stride(0),
                view.page_table_RP.shape[1],
                num_rows,
                num_tokens,
                page_size,
            )
        return ids_T, batch

    def take_rows(self, x: Tensor, index_R: Tensor, *, dim: int) -> Tensor:
        """Return the slices of ``x`` that ``index_R`` names along ``dim``."""
        if dim != 0 or not x[:1].is_contiguous() or index_R.stride(0) != 1:
            return steps.take_rows.reference(x, index_R, dim=dim)
        return self._take_rows(x, index_R, 0)

    def last_of_rows(self, x_TD: Tensor, query_starts_R1: Tensor) -> Tensor:
        """Return what each row's last token has. [R, D]"""
        if x_TD.stride(-1) != 1:
            return steps.last_of_rows.reference(x_TD, query_starts_R1)
        return self._take_rows(x_TD, query_starts_R1[1:], -1)

    def _take_rows(self, x: Tensor, index_R: Tensor, shift: int) -> Tensor:
        rows, width = index_R.shape[0], x.element_size()
        taken = self._stream.empty((rows, *x.shape[1:]), x.dtype)
        self._stream.emit(
            self._take,
            x.data_ptr(),
            x.stride(0) * width,
            index_R.data_ptr(),
            index_R.element_size(),
            shift,
            taken.data_ptr(),
            taken.stride(0) * width,
            rows,
            x.shape[1:].numel() * width,
        )
        return taken

    def keep_rows(self, x_RV: Tensor, into_RV: Tensor) -> None:
        """Copy ``x_RV`` into a buffer that outlives the step."""
        if x_RV.dtype != into_RV.dtype or x_RV.stride(-1) != 1 or into_RV.stride(-1) != 1:
            steps.keep_rows.reference(x_RV, into_RV)
            return
        width = x_RV.element_size()
        self._stream.emit(
            self._copy,
            x_RV.data_ptr(),
            x_RV.stride(0) * width,
            into_RV.data_ptr(),
            into_RV.stride(0) * width,
            x_RV.shape[0],
            x_RV.shape[1] * width,
        )

    def mark_faults(self, drawn_R: Tensor, logits_RV: Tensor) -> Tensor:
        """Return the drawn ids, and ``FAULTY`` where the drawn id's logit is not finite."""
        assert logits_RV.stride(-1) == 1, "logits come in rows"
        marked_R = self._stream.empty((drawn_R.shape[0],), torch.int64)
        self._stream.emit(
            self._mark,
            drawn_R.data_ptr(),
            logits_RV.data_ptr(),
            logits_RV.stride(0),
            marked_R.data_ptr(),
            drawn_R.shape[0],
        )
        return marked_R

    def forbid_stops(
        self,
        logits_RV: Tensor,
        stop_ids_RE: Tensor,
        num_outputs_R: Tensor,
        min_outputs_R: Tensor,
    ) -> Tensor:
        """Make stop ids impossible, in place, for rows with fewer outputs than they must have."""
        assert logits_RV.stride(-1) == 1, "logits come in rows"
        self._stream.emit(
            self._forbid,
            logits_RV.data_ptr(),
            logits_RV.stride(0),
            stop_ids_RE.data_ptr(),
            stop_ids_RE.shape[1],
            num_outputs_R.data_ptr(),
            min_outputs_R.data_ptr(),
            logits_RV.shape[0],
        )
        return logits_RV

    def count_outputs(
        self, drawn_R: Tensor, slots_R: Tensor, done_S: Tensor, output_counts_SV: Tensor
    ) -> None:
        """Count the drawn ids of slots that are not done."""
        self._stream.emit(
            self._count,
            drawn_R.data_ptr(),
            slots_R.data_ptr(),
            done_S.data_ptr(),
            output_counts_SV.data_ptr(),
            output_counts_SV.stride(0),
            drawn_R.shape[0],
        )

    def advance_lengths(self, slots: Slots, inputs: StepInputs, batch: StepBatch) -> Slots:
        """Enter the lengths that the forward pass has reached for slots that are not done."""
        self._stream.emit(
            self._advance,
            inputs.slots_R.data_ptr(),
            batch.kv_lengths_R.data_ptr(),
            slots.done_S.data_ptr(),
            slots.lengths_S.data_ptr(),
            inputs.slots_R.shape[0],
        )
        return slots

    def settle_step(
        self,
        drawn_RJ: Tensor,
        accepted_R: Tensor,
        slots: Slots,
        inputs: StepInputs,
        outbox_NRO: Tensor,
    ) -> tuple[Slots, Tensor]:
        """Enter what a step drew into the slot table and the outbox."""
        assert drawn_RJ.is_contiguous(), "draws come in rows"
        self._stream.emit(
            self._settle,
            drawn_RJ.data_ptr(),
            drawn_RJ.shape[1],
            accepted_R.data_ptr(),
            inputs.draw_slots_R.data_ptr(),
            inputs.num_draws_R.data_ptr(),
            slots.max_outputs_S.data_ptr(),
            slots.stop_ids_SE.data_ptr(),
            slots.stop_ids_SE.shape[1],
            slots.last_ids_S.data_ptr(),
            slots.num_outputs_S.data_ptr(),
            slots.done_S.data_ptr(),
            slots.lengths_S.data_ptr(),
            outbox_NRO.data_ptr(),
            outbox_NRO.stride(0),
            outbox_NRO.stride(1),
            outbox_NRO.shape[0],
            slots.cursor_1.data_ptr(),
            drawn_RJ.shape[0],
        )
        return slots, outbox_NRO
