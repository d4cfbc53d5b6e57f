"""A plan's changes and rows, brought to the device: at most one copy a step.

Shapes: R rows, T tokens, N tree nodes, as they are padded; all integers are int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headstock.ops.steps import StepInputs
from headstock.plugins.device import Device
from headstock.runner.arena import PageNumbers
from headstock.runner.options import PaddedSizes
from headstock.runner.rows import NO_TREE, RowSet, SlotFacts, read_rows
from headstock.runner.slots import Edits, OptionalTables, SlotTable, has_penalties, padded_biases
from headstock.wire.steps import Admit, RunnerLimits, StepPlan

if TYPE_CHECKING:
    from headstock.runner.media import MediaRows

EDITS_AT_ONCE = 1 << 15
"""Edits that fit into the step's own buffer; more (long prompts at once) take one of their own."""


LEAST_PADDED = 16
"""The least size that arrays are padded to, where sizes must be few; the others are 4 times one."""


def padded_size(size: int) -> int:
    """Return what ``size`` elements are padded to where sizes must be few."""
    padded = LEAST_PADDED
    while padded < size:
        padded *= 4
    return padded


class HostArrays:
    """Sends small arrays beside the step's own copy, without waiting.

    Their host memory lives until a step takes it over.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._sent: list[Tensor] = []

    def send(self, values: np.ndarray) -> Tensor:
        """Queue the copy of ``values``; the device's tensor has the same shape and dtype."""
        host = self._device.host_buffer(values.shape, torch.from_numpy(values).dtype)
        host.numpy()[...] = values
        self._sent.append(host)
        return host.to(self._device.torch_device, non_blocking=True)

    def padded_size(self, size: int) -> int:
        """Return what ``size`` elements are padded to where the device compiles each size."""
        return padded_size(size) if size and self._device.facts.compiles_sizes else size

    def send_padded(self, *arrays: np.ndarray) -> list[Tensor]:
        """Queue the copies of equally long ``arrays``, one dimension each.

        The last element is repeated up to :meth:`padded_size`: what takes it must not mind.
        """
        missing = self.padded_size(len(arrays[0])) - len(arrays[0])
        if missing:
            arrays = tuple(np.pad(values, (0, missing), mode="edge") for values in arrays)
        return [self.send(values) for values in arrays]

    def cut(self) -> None:
        """Keep what was queued apart from what follows, where each program is compiled."""
        if self._device.facts.compiles_sizes:
            self._device.cut()

    def take(self) -> list[Tensor]:
        """Return what must live until all that is queued now is over, and forget it."""
        sent, self._sent = self._sent, []
        return sent


class RowBuffer:
    """The device buffer that steps read their rows from, and the host buffers that fill it.

    One host buffer for each step in flight: a copy may still be under way when the next step is
    prepared.

    Attributes:
        words: All of it, on the device.
        counts: (real rows, real tokens, tree nodes). [3]
        tree_N4: (row_begin, row_end, kv_begin, kv_end) of prefixes that rows share.
    """

    def __init__(
        self, device: Device, arrays: HostArrays, sizes: PaddedSizes, *, depth: int, null_slot: int
    ) -> None:
        rows, tokens = sizes.max_rows, sizes.max_tokens
        self._arrays = arrays
        self._null_slot = null_slot
        parts = (rows, rows, rows, rows + 1, 3, 4 * rows)
        self._begins = [int(begin) for begin in np.cumsum((0, *parts))]
        self._tokens_at = self._begins[-1]
        size = self._tokens_at + tokens + 2 * EDITS_AT_ONCE
        self.words = device.empty((size,), torch.int32).zero_()
        self._hosts = [device.host_buffer((size,), torch.int32) for _ in range(depth + 1)]
        self._turn = 0
        self._edits_at = self._tokens_at
        fields = self.words[: self._tokens_at].split(parts)
        self._slots_R, self._draw_slots_R, self._num_draws_R, self._starts_R1 = fields[:4]
        self.counts, tree = fields[4:]
        self.tree_N4 = tree.view(rows, 4)
        self._host_ids_T = self.words[self._tokens_at : self._tokens_at + tokens]

    def inputs(self, num_tokens: int, num_rows: int) -> StepInputs:
        """Return the rows of a step of that padded size: views, nothing is copied."""
        return StepInputs(
            slots_R=self._slots_R[:num_rows],
            draw_slots_R=self._draw_slots_R[:num_rows],
            num_draws_R=self._num_draws_R[:num_rows],
            query_starts_R1=self._starts_R1[: num_rows + 1],
            host_ids_T=self._host_ids_T[:num_tokens],
        )

    def send_rows(
        self, rows: RowSet, padded: tuple[int, int], edits: Edits, table: SlotTable
    ) -> None:
        """Queue the copy of ``rows``, padded to (T, R), and of ``edits``, and apply those."""
        host = self._next_host()
        num_tokens, num_rows = padded
        self._write_rows(host.numpy(), rows, num_tokens, num_rows)
        self._edits_at = self._tokens_at + num_tokens
        self._send(host, 0, self._edits_at, edits, table)

    def send_edits(self, edits: Edits, table: SlotTable) -> None:
        """Queue and apply ``edits`` alone; the rows stay what they are."""
        self._send(self._next_host(), self._edits_at, self._edits_at, edits, table)

    def fill_null(self, num_tokens: int, num_rows: int, query: int) -> None:
        """Make every row a padding row of ``query`` tokens: what a step is captured on."""
        inputs = self.inputs(num_tokens, num_rows)
        inputs.slots_R.fill_(self._null_slot)
        inputs.draw_slots_R.fill_(self._null_slot)
        inputs.num_draws_R.fill_(1)
        starts = torch.arange(num_rows + 1, dtype=torch.int32, device=self.words.device)
        inputs.query_starts_R1.copy_(starts * query)
        self.counts.zero_()
        inputs.host_ids_T.zero_()

    def warm_up(self, sizes: Sequence[int], table: SlotTable) -> None:
        """Send nothing of every size that a step may have, where each is compiled.

        Args:
            sizes: Tokens of padded steps.
            table: Whose null slot is written to.
        """
        self._arrays.cut()
        for num_tokens in sizes:
            self._send(self._next_host(), 0, self._tokens_at + num_tokens, Edits(), table)
        count = LEAST_PADDED
        while count <= EDITS_AT_ONCE:
            edits = Edits()
            table.edit_null(edits, count)
            self._send(self._next_host(), self._tokens_at, self._tokens_at, edits, table)
            count *= 4

    def _next_host(self) -> Tensor:
        self._turn = (self._turn + 1) % len(self._hosts)
        return self._hosts[self._turn]

    def _write_rows(self, words: np.ndarray, rows: RowSet, num_tokens: int, num_rows: int) -> None:
        slots_at, draw_slots_at, draws_at, starts_at, counts_at, tree_at, _ = self._begins
        real_rows, real_tokens = len(rows.slots), len(rows.host_ids)
        for begin, values, padding in (
            (slots_at, rows.slots, self._null_slot),
            (draw_slots_at, rows.draw_slots, self._null_slot),
            (draws_at, rows.num_draws, 1),
        ):
            words[begin : begin + real_rows] = values
            words[begin + real_rows : begin + num_rows] = padding
        starts = words[starts_at : starts_at + num_rows + 1]
        starts[0] = 0
        np.cumsum(rows.queries, out=starts[1 : real_rows + 1])
        # Padding rows have as many tokens as the others of a uniform step, else one.
        query = rows.queries[0] if rows.is_uniform else 1
        starts[real_rows + 1 :] = real_tokens + query * np.arange(1, num_rows - real_rows + 1)
        tree = rows.tree
        num_nodes = min(len(tree.row_begin), len(self.tree_N4))  # a hint: any part of it is right
        words[counts_at : counts_at + 3] = (real_rows, real_tokens, num_nodes)
        nodes = words[tree_at : tree_at + 4 * num_nodes].reshape(num_nodes, 4)
        columns = (tree.row_begin, tree.row_end, tree.kv_begin, tree.kv_end)
        for column, values in enumerate(columns):
            nodes[:, column] = values[:num_nodes]
        ids = words[self._tokens_at : self._tokens_at + num_tokens]
        ids[:real_tokens] = rows.host_ids
        ids[real_tokens:] = 0

    def _send(self, host: Tensor, begin: int, end: int, edits: Edits, table: SlotTable) -> None:
        last = end
        if edits.count:
            pairs = edits.drain()
            if table.words.is_split:
                table.words.apply_split(pairs, self._arrays)
            elif pairs.size > 2 * EDITS_AT_ONCE:
                table.words.apply(*self._arrays.send(pairs))
            else:
                last = end + pairs.size
                host.numpy()[end:last] = pairs.reshape(-1)
        if last > begin:
            self.words[begin:last].copy_(host[begin:last], non_blocking=True)
            self._arrays.cut()
        if last > end:
            table.words.apply(*self.words[end:last].view(2, -1))


class Upload:
    """The host's side of the slot table and of a step's rows.

    Attributes:
        table: On the device, one entry a slot.
        optional: On the device, what only some requests need.
        rows: On the device, the rows of the step.
        arrays: Carries what does not fit the step's own copy.
        media: Images, where the model takes any.
        steps: Steps that drew, as many as the table's cursor has counted.
    """

    def __init__(
        self, device: Device, limits: RunnerLimits, sizes: PaddedSizes, numbers: PageNumbers
    ) -> None:
        self.arrays = HostArrays(device)
        self.table = SlotTable(device, limits, numbers)
        self.optional = OptionalTables(device, limits)
        null_slot = limits.num_slots
        self.rows = RowBuffer(device, self.arrays, sizes, depth=limits.depth, null_slot=null_slot)
        self.media: MediaRows | None = None
        self.steps = 0
        self._null_slot = null_slot
        self._edits = Edits()
        self._facts: dict[int, SlotFacts] = {}
        self._biased_slots: set[int] = set()
        self._max_length = limits.max_length
        self._is_padded = device.facts.compiles_sizes
        self._tree = NO_TREE

    def enter(self, plan: StepPlan) -> None:
        """Note who leaves, who comes, and which pages are new."""
        for slot in plan.leave:
            self._facts.pop(slot, None)
        if plan.admit:
            self.table.admit(self._edits, plan.admit)
            for admit in plan.admit:
                self._facts[admit.slot] = SlotFacts.of(admit)
                self._fill_optional(admit)
        if plan.append.slots:
            self.table.append(self._edits, plan.append)
        if self.media is not None:
            self.media.enter(plan)
        if plan.tree is not None:
            self._tree = plan.tree

    def _fill_optional(self, admit: Admit) -> None:
        """Enter what only some requests need.

        Biases of the slot's last request are taken back. Its other entries may stay: without
        penalties counts are not used, without drafts histories are not.
        """
        was_biased = admit.slot in self._biased_slots
        if not (has_penalties(admit) or admit.bias_ids or admit.drafts or was_biased):
            return
        send = self.arrays.send
        slot_1 = send(np.array([admit.slot], np.int64))
        if has_penalties(admit):
            self.optional.penalty_table().reset(slot_1, *self._send_history(admit))
            self.arrays.cut()
        if admit.bias_ids or was_biased:
            ids, biases = padded_biases(admit.bias_ids, admit.biases)
            self.optional.bias_table().reset(slot_1, send(ids), send(biases))
            self.arrays.cut()
            (self._biased_slots.add if admit.bias_ids else self._biased_slots.discard)(admit.slot)
        if admit.drafts:
            assert self.optional.histories is not None, f"slot {admit.slot}: drafts are off here"
            (history,) = self.arrays.send_padded(np.array(admit.history, np.int32))
            self.optional.histories.reset(slot_1, history)
            self.arrays.cut()

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Send nothing of every size that there may be, where each is compiled.

        Args:
            sizes: Tokens of padded steps.
        """
        self.optional.penalty_table()
        self.optional.bias_table()
        self.rows.warm_up(sizes, self.table)
        size, drafts = LEAST_PADDED, self.optional.histories is not None
        while size < 4 * (self._max_length + 1):
            history = [0] * (size - 1)
            self._fill_optional(
                Admit(
                    self._null_slot,
                    length=0,
                    num_outputs=0,
                    max_outputs=1,
                    presence_penalty=1.0,
                    history=history,
                    num_prompt=len(history),
                    bias_ids=[0],
                    biases=[0.0],
                    drafts=drafts,
                )
            )
            size *= 4

    def _send_history(self, admit: Admit) -> list[Tensor]:
        """Queue the tokens of a request, and which are its prompt's and its output's.

        A last one, which may be repeated, is of neither.
        """
        ids = np.array([*admit.history, 0], np.int64)
        places = np.arange(len(ids))
        of_prompt = places < admit.num_prompt
        of_output = ~of_prompt & (places < len(admit.history))
        return self.arrays.send_padded(ids, of_prompt.astype(np.int32), of_output.astype(np.int32))

    def send_rows(self, rows: RowSet, padded: tuple[int, int]) -> None:
        """Queue the copy of ``rows``, padded to (tokens, rows), and of what has changed."""
        self.rows.send_rows(rows, padded, self._edits, self.table)
        if self.media is not None:
            self.media.send(padded[0])

    def send_edits(self) -> None:
        """Queue the copy of what has changed, if anything has; the rows stay."""
        if self._edits.count:
            self.rows.send_edits(self._edits, self.table)

    def read_rows(self, plan: StepPlan) -> RowSet:
        """Return the rows of ``plan``, after it was entered."""
        has_media = self.media is not None and self.media.read(plan)
        rows = read_rows(plan, self._facts, self._null_slot, self._tree, has_media=has_media)
        if self._is_padded and not rows.max_draws:
            # Rows that draw nothing may have any equal length: that would be a size of its own.
            rows = replace(rows, is_uniform=False, max_draws=1)
        return rows

    def recover(self) -> None:
        """After a step that failed: set the table's count of steps to the host's."""
        self._edits.may_repeat = True
        self.table.set_cursor(self._edits, self.steps)
