"""Host to device: a step's rows and the slot table's edits, in one copy from pinned memory.

Shapes: R rows, T tokens, N tree nodes, as they are padded; all integers are int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstock.plugins.device import Device
from headstock.runner.mail import Mail
from headstock.runner.slots import Edits, SlotTable
from headstock.wire.steps import TreeNodes

EDITS_AT_ONCE = 1 << 15
"""Edits that fit into the step's own buffer; more (long prompts at once) take one of their own."""


@dataclass(frozen=True, slots=True)
class RowInputs:
    """The rows of a step as the device is told of them, not padded yet.

    Attributes:
        slots: Whose row it is. [rows]
        sample_slots: Likewise, the null slot for rows that draw nothing. [rows]
        queries: Tokens of each row. [rows]
        host_ids: Token ids; -1: the slot's last one. [tokens]
        tree: Prefixes that rows share.
    """

    slots: Sequence[int]
    sample_slots: Sequence[int]
    queries: Sequence[int]
    host_ids: Sequence[int]
    tree: TreeNodes


class StepInputs:
    """The device buffer that steps read their rows from, and the host buffers that fill it.

    One host buffer for each step in flight: a copy may still be under way when the next step is
    prepared.

    Args:
        device: Where steps run.
        mail: Carries edits that are too many for the step's own buffer.
        max_rows: R at most.
        max_tokens: T at most.
        depth: Steps in flight.
        null_slot: The slot of padding rows.
    """

    def __init__(
        self,
        device: Device,
        mail: Mail,
        *,
        max_rows: int,
        max_tokens: int,
        depth: int,
        null_slot: int,
    ) -> None:
        self._mail = mail
        self._null_slot = null_slot
        self._tokens_at = 7 * max_rows + 4
        size = self._tokens_at + max_tokens + 2 * EDITS_AT_ONCE
        self.words = device.empty((size,), torch.int32).zero_()
        self._hosts = [device.host_buffer((size,), torch.int32) for _ in range(depth + 1)]
        self._turn = 0
        self._edits_at = self._tokens_at
        sizes = (max_rows, max_rows, max_rows + 1, 3, 4 * max_rows)
        parts = self.words[: self._tokens_at].split(sizes)
        self.slots_R, self.sample_slots_R, self.query_starts_R1, self.counts, tree = parts
        self.tree_N4 = tree.view(max_rows, 4)
        self.host_ids_T = self.words[self._tokens_at : self._tokens_at + max_tokens]
        self._begins = np.cumsum((0, *sizes))

    def send_rows(
        self, rows: RowInputs, padded: tuple[int, int], edits: Edits, table: SlotTable
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

    def fill_null(self, num_tokens: int, num_rows: int) -> None:
        """Let every row be a padding row, on the device: what a step is captured on."""
        self.slots_R[:num_rows].fill_(self._null_slot)
        self.sample_slots_R[:num_rows].fill_(self._null_slot)
        starts = torch.arange(num_rows + 1, dtype=torch.int32, device=self.words.device)
        self.query_starts_R1[: num_rows + 1].copy_(starts)
        self.counts.zero_()
        self.host_ids_T[:num_tokens].zero_()

    def _next_host(self) -> Tensor:
        self._turn = (self._turn + 1) % len(self._hosts)
        return self._hosts[self._turn]

    def _write_rows(
        self, words: np.ndarray, rows: RowInputs, num_tokens: int, num_rows: int
    ) -> None:
        slots_at, sample_at, starts_at, counts_at, tree_at = self._begins[:5]
        real_rows, real_tokens = len(rows.slots), len(rows.host_ids)
        for begin, values in ((slots_at, rows.slots), (sample_at, rows.sample_slots)):
            words[begin : begin + real_rows] = values
            words[begin + real_rows : begin + num_rows] = self._null_slot
        starts = words[starts_at : starts_at + num_rows + 1]
        starts[0] = 0
        np.cumsum(rows.queries, out=starts[1 : real_rows + 1])
        starts[real_rows + 1 :] = real_tokens + np.arange(1, num_rows - real_rows + 1)
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
            if pairs.size > 2 * EDITS_AT_ONCE:
                table.apply(*self._mail.send(pairs))
            else:
                last = end + pairs.size
                host.numpy()[end:last] = pairs.reshape(-1)
        if last > begin:
            self.words[begin:last].copy_(host[begin:last], non_blocking=True)
        if last > end:
            table.apply(*self.words[end:last].view(2, -1))
