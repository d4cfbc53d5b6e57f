"""The slot table: what the device keeps of each request, at addresses that never change.

All of it lies in one int32 buffer, whose views are the fields: any change a plan brings, whatever
the field, is a pair (index, value) of :class:`Edits`, and a step's pairs travel in one copy.

Shapes: S slots and the null slot after them, P pages a request can have, E stop ids.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from headstock.plugins.device import Device
from headstock.wire.steps import Admit, PageAppends

MAX_STOP_IDS = 64
"""Stop ids a request can have: the API's 32 and the model's own."""

LONGS = ("seeds", "num_outputs")
INTS = ("lengths", "last_ids", "done", "max_outputs", "min_outputs", "top_k")
FLOATS = ("temperature", "top_p", "min_p", "repetition", "frequency", "presence")

GREEDY_BELOW = 1e-6
"""Temperatures under this are greedy, as in the op ``draw_tokens``. Dimensionless."""

Words = np.ndarray[tuple[int], np.dtype[np.int32]]


class Edits:
    """Changes to the slot table that the next step brings along; of equal indexes the last counts.

    A plan changes no word twice. But edits of a step that failed stay, and the next may repeat
    them: then ``may_repeat`` must be set, since the device applies pairs in any order.
    """

    def __init__(self) -> None:
        self._indexes: list[Words] = []
        self._values: list[Words] = []
        self.count = 0
        self.may_repeat = False

    def add(self, indexes: Words, values: Words) -> None:
        """Set the table's word ``indexes[i]`` to ``values[i]``."""
        self._indexes.append(indexes)
        self._values.append(values)
        self.count += len(indexes)

    def drain(self) -> np.ndarray:
        """Return the indexes and the values, and forget them. int32. [2, count]"""
        pairs = np.stack((np.concatenate(self._indexes), np.concatenate(self._values)))
        if self.may_repeat:
            _, last = np.unique(pairs[0, ::-1], return_index=True)
            pairs = np.ascontiguousarray(pairs[:, ::-1][:, last])
        self._indexes.clear()
        self._values.clear()
        self.count = 0
        self.may_repeat = False
        return pairs


def is_greedy(admit: Admit) -> bool:
    """Whether the highest logit wins, whatever the seed."""
    return admit.temperature < GREEDY_BELOW or admit.top_k == 1


class SlotTable:
    """Views on the slots' fields; entry ``num_slots`` is the null slot, which is always done.

    Attributes:
        seeds_S, num_outputs_S: int64.
        lengths_S, last_ids_S, done_S, max_outputs_S, min_outputs_S, top_k_S: int32.
        floats_FS: One row a name in :data:`FLOATS`. float32.
        stop_ids_SE: -1 where there is none. int32.
        page_table_SP: int32.
        cursor_1: Steps run so far. int64.
    """

    def __init__(self, device: Device, num_slots: int, max_pages: int) -> None:
        self.num_slots = num_slots
        self.max_pages = max_pages
        size = num_slots + 1
        num_longs = len(LONGS) * size + 1
        sizes = (2 * num_longs, len(INTS) * size, len(FLOATS) * size, MAX_STOP_IDS * size)
        self._begins = np.cumsum((0, *sizes))
        self.words = device.empty((int(self._begins[-1]) + size * max_pages,), torch.int32).zero_()
        longs, ints, floats, stops = self.words[: int(self._begins[-1])].split(sizes)
        self._longs = longs.view(torch.int64)
        self.seeds_S, self.num_outputs_S, self.cursor_1 = self._longs.split((size, size, 1))
        by_name = ints.view(len(INTS), size).unbind(0)
        self.lengths_S, self.last_ids_S, self.done_S = by_name[:3]
        self.max_outputs_S, self.min_outputs_S, self.top_k_S = by_name[3:]
        self.floats_FS = floats.view(torch.float32).view(len(FLOATS), size)
        self.stop_ids_SE = stops.view(size, MAX_STOP_IDS)
        self.stop_ids_SE.fill_(-1)
        self.done_S.fill_(1)
        self.page_table_SP = self.words[int(self._begins[-1]) :].view(size, max_pages)
        self._field_begins, self._field_strides = self._places(size)

    def _places(self, size: int) -> tuple[Words, Words]:
        """Return where slot 0's words lie, in the order of :meth:`admit`, and the step a slot."""
        longs, ints, floats, stops = (int(begin) for begin in self._begins[:4])
        begins = [longs, longs + 1, longs + 2 * size, longs + 2 * size + 1]
        begins += [ints + i * size for i in range(len(INTS))]
        begins += [floats + i * size for i in range(len(FLOATS))]
        begins += list(range(stops, stops + MAX_STOP_IDS))
        strides = [2] * 4 + [1] * (len(INTS) + len(FLOATS)) + [MAX_STOP_IDS] * MAX_STOP_IDS
        return np.array(begins, np.int32), np.array(strides, np.int32)

    def admit(self, edits: Edits, admit: Admit) -> None:
        """Let ``admit`` have its slot."""
        assert len(admit.stop_ids) <= MAX_STOP_IDS, (
            f"slot {admit.slot}: {len(admit.stop_ids)} stop ids, at most {MAX_STOP_IDS}"
        )
        longs = np.array((admit.seed, admit.num_outputs), np.int64).view(np.int32)
        ints = np.array(
            (
                admit.length,
                0,
                0,
                min(admit.max_outputs, 2**31 - 1),
                min(admit.min_outputs, 2**31 - 1),
                admit.top_k,
            ),
            np.int32,
        )
        floats = np.array(
            (
                0.0 if is_greedy(admit) else admit.temperature,
                admit.top_p,
                admit.min_p,
                admit.repetition_penalty,
                admit.frequency_penalty,
                admit.presence_penalty,
            ),
            np.float32,
        ).view(np.int32)
        stops = np.full(MAX_STOP_IDS, -1, np.int32)
        stops[: len(admit.stop_ids)] = admit.stop_ids
        indexes = self._field_begins + admit.slot * self._field_strides
        edits.add(indexes, np.concatenate((longs, ints, floats, stops)))

    def append(self, edits: Edits, pages: PageAppends) -> None:
        """Enter pages into the slots' page tables."""
        assert not any(pages.groups), f"page groups {sorted(set(pages.groups))}: there is only 0"
        begin = int(self._begins[-1])
        slots, indexes = np.array(pages.slots, np.int32), np.array(pages.indexes, np.int32)
        edits.add(begin + slots * self.max_pages + indexes, np.array(pages.pages, np.int32))

    def set_cursor(self, edits: Edits, steps: int) -> None:
        """Set the count of steps, after a step that failed may or may not have counted itself."""
        index = 2 * len(LONGS) * (self.num_slots + 1)
        words = np.array((steps,), np.int64).view(np.int32)
        edits.add(np.array((index, index + 1), np.int32), words)

    def apply(self, indexes: Tensor, values: Tensor) -> None:
        """Set words of the table. int32. [edits] each"""
        self.words.index_copy_(0, indexes.long(), values)

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return self.words.numel() * self.words.element_size()
