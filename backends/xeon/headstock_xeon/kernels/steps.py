"""What surrounds the model in a step, so that a captured one is native from end to end.

Shapes as in :mod:`headstock.ops.steps`: S slots, T tokens, R rows, P pages, E stop ids, V ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headstock.ops import steps

if TYPE_CHECKING:
    from headstock_xeon.device import XeonDevice


class StepKernels:
    """Function ops bound to a device's stream."""

    def __init__(self, device: XeonDevice) -> None:
        self._stream = device.stream
        kernel = device.stream.kernel
        self._take, self._copy, self._place = kernel("take"), kernel("copy"), kernel("place")
        self._advance, self._settle = kernel("advance"), kernel("settle")
        self._count, self._mark, self._forbid = kernel("count"), kernel("mark"), kernel("forbid")

    def place_step(
        self,
        slots_R: Tensor,
        query_starts_R1: Tensor,
        host_ids_T: Tensor,
        lengths_S: Tensor,
        done_S: Tensor,
        last_ids_S: Tensor,
        page_table_SP: Tensor,
        ids_T: Tensor,
        positions_T: Tensor,
        row_of_token_T: Tensor,
        write_slots_T: Tensor,
        kv_lengths_R: Tensor,
        page_table_RP: Tensor,
        *,
        page_size: int,
    ) -> None:
        """Work out a step's inputs from the slot table."""
        self._stream.emit(
            self._place,
            slots_R.data_ptr(),
            query_starts_R1.data_ptr(),
            host_ids_T.data_ptr(),
            lengths_S.data_ptr(),
            done_S.data_ptr(),
            last_ids_S.data_ptr(),
            page_table_SP.data_ptr(),
            page_table_SP.stride(0),
            ids_T.data_ptr(),
            positions_T.data_ptr(),
            row_of_token_T.data_ptr(),
            write_slots_T.data_ptr(),
            kv_lengths_R.data_ptr(),
            page_table_RP.data_ptr(),
            page_table_RP.stride(0),
            page_table_RP.shape[1],
            slots_R.shape[0],
            ids_T.shape[0],
            page_size,
        )

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

    def advance_lengths(
        self, slots_R: Tensor, kv_lengths_R: Tensor, done_S: Tensor, lengths_S: Tensor
    ) -> None:
        """Let slots that are not done have the lengths they have reached."""
        self._stream.emit(
            self._advance,
            slots_R.data_ptr(),
            kv_lengths_R.data_ptr(),
            done_S.data_ptr(),
            lengths_S.data_ptr(),
            slots_R.shape[0],
        )

    def settle_step(
        self,
        drawn_R: Tensor,
        slots_R: Tensor,
        max_outputs_S: Tensor,
        stop_ids_SE: Tensor,
        last_ids_S: Tensor,
        num_outputs_S: Tensor,
        done_S: Tensor,
        outbox_NR2: Tensor,
        cursor_1: Tensor,
    ) -> None:
        """Enter what a step drew into the slot table and the outbox."""
        self._stream.emit(
            self._settle,
            drawn_R.data_ptr(),
            slots_R.data_ptr(),
            max_outputs_S.data_ptr(),
            stop_ids_SE.data_ptr(),
            stop_ids_SE.shape[1],
            last_ids_S.data_ptr(),
            num_outputs_S.data_ptr(),
            done_S.data_ptr(),
            outbox_NR2.data_ptr(),
            outbox_NR2.stride(0),
            outbox_NR2.shape[0],
            cursor_1.data_ptr(),
            drawn_R.shape[0],
        )
