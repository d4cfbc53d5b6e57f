"""What the device keeps of each request, at addresses that never change.

Any change of a plan to the table, whatever the field, is a pair (index, value) of words, and a
step's pairs, its :class:`Edits`, travel together. Tables that only some requests need are made when
the first of them comes.

Shapes: S slots and the null slot after them, P pages a request can have in a group, E stop ids,
V token ids, B biases a request can have, K drafts, L tokens of the longest request.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headstock.ops.steps import NO_DRAFT, Slots
from headstock.plugins.device import Device
from headstock.runner.arena import PageNumbers
from headstock.runner.slot_words import SharedWords, SplitWords
from headstock.wire.steps import Admit, PageAppends, PageGroup, RunnerLimits

MAX_STOP_IDS = 64
"""Stop ids a request can have: the API's 32 and the model's own."""
MAX_BIASES = 1024
"""Biased ids a request can have, as the API allows them."""

LONGS = ("seeds_S", "num_outputs_S")
INTS = (
    "lengths_S",
    "last_ids_S",
    "done_S",
    "max_outputs_S",
    "min_outputs_S",
    "top_k_S",
    "adapters_S",
)
FLOATS = ("temperature_S", "top_p_S", "min_p_S", "repetition_S", "frequency_S", "presence_S")

GREEDY_BELOW = 1e-6
"""Temperatures under this are greedy, as in the op ``draw_tokens``. Dimensionless."""

STATE_TABLE = 2
"""Table entries of a group of states: where a step reads from, and where it writes to."""

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


def has_penalties(admit: Admit) -> bool:
    """Whether earlier tokens change the request's logits."""
    return (
        admit.repetition_penalty != 1 or admit.frequency_penalty != 0 or admit.presence_penalty != 0
    )


class SlotTable:
    """The table, and how plans change it; entry ``num_slots`` is the null slot, always done.

    Attributes:
        slots: The table's fields, as ops take them.
        words: All of the table that a plan may change.
        num_slots: Slots that requests can have.
    """

    def __init__(self, device: Device, limits: RunnerLimits, numbers: PageNumbers) -> None:
        self.num_slots = limits.num_slots
        self._numbers = numbers
        size = limits.num_slots + 1
        self._widths = [table_width(group, limits.max_length) for group in limits.groups]
        num_longs = len(LONGS) * size + 1
        num_ints, num_floats = len(INTS) * size, len(FLOATS) * size
        rest = [MAX_STOP_IDS * size, *(width * size for width in self._widths)]
        self._begins = np.cumsum((0, 2 * num_longs, num_ints, num_floats, *rest))
        kind = SplitWords if device.facts.is_functional else SharedWords
        self.words = kind(device, num_longs, num_ints, num_floats, rest)
        stops, *pages = self.words.rest
        *by_long, cursor_1 = self.words.longs.split([*[size] * len(LONGS), 1])
        drafts_SK = device.empty((size, limits.max_drafts), torch.int32).fill_(NO_DRAFT)
        self.slots = Slots(
            **dict(zip(LONGS, by_long, strict=True)),
            **dict(zip(INTS, self.words.ints.view(-1, size).unbind(0), strict=True)),
            **dict(zip(FLOATS, self.words.floats.view(-1, size).unbind(0), strict=True)),
            stop_ids_SE=stops.view(size, MAX_STOP_IDS).fill_(-1),
            drafts_SK=drafts_SK,
            tables=tuple(
                table.view(size, width) for table, width in zip(pages, self._widths, strict=True)
            ),
            page_sizes=tuple(_page_size(group) for group in limits.groups),
            cursor_1=cursor_1,
        )
        self.slots.done_S.fill_(1)
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

    def admit(self, edits: Edits, admits: Sequence[Admit]) -> None:
        """Enter each of ``admits`` into its slot, all in one go."""
        count = len(admits)
        slots = np.array([admit.slot for admit in admits], np.int32)
        indexes = self._field_begins + slots[:, None] * self._field_strides
        values = np.full(indexes.shape, -1, np.int32)
        longs = [(admit.seed, admit.num_outputs) for admit in admits]
        first, last = 0, 2 * len(LONGS)
        values[:, first:last] = np.array(longs, np.int64).view(np.int32)
        first, last = last, last + len(INTS)
        values[:, first:last] = [_ints(admit) for admit in admits]
        first, last = last, last + len(FLOATS)
        floats = np.array([_floats(admit) for admit in admits], np.float32)
        values[:, first:last] = floats.view(np.int32)
        for row in range(count):
            stop_ids = admits[row].stop_ids
            assert len(stop_ids) <= MAX_STOP_IDS, (
                f"slot {admits[row].slot}: {len(stop_ids)} stop ids, at most {MAX_STOP_IDS}"
            )
            values[row, last : last + len(stop_ids)] = stop_ids
        edits.add(indexes.reshape(-1), values.reshape(-1))

    def append(self, edits: Edits, pages: PageAppends) -> None:
        """Enter pages into the slots' page tables."""
        slots, indexes = np.array(pages.slots, np.int32), np.array(pages.indexes, np.int32)
        first = len(self._begins) - 1 - len(self._widths)
        if len(self._widths) == 1:
            begins, widths = np.int32(self._begins[first]), np.int32(self._widths[0])
        else:
            groups = np.array(pages.groups)
            begins = self._begins[first:-1][groups].astype(np.int32)
            widths = np.array(self._widths, np.int32)[groups]
        entries = self._numbers.entries(pages.groups, pages.pages)
        edits.add(begins + slots * widths + indexes, entries)

    def set_cursor(self, edits: Edits, steps: int) -> None:
        """Set the count of steps, after a step that failed may or may not have counted itself."""
        index = 2 * len(LONGS) * (self.num_slots + 1)
        words = np.array((steps,), np.int64).view(np.int32)
        edits.add(np.array((index, index + 1), np.int32), words)

    def edit_null(self, edits: Edits, count: int) -> None:
        """Enter ``count`` changes of each dtype to the null slot: its seed, id and temperature."""
        longs, ints, floats = (int(begin) for begin in self._begins[:3])
        seed = longs + 2 * self.num_slots
        places = [[seed, seed + 1] * count]
        places += [
            [begin + self.num_slots] * count for begin in (ints + self.num_slots + 1, floats)
        ]
        for words in places:
            edits.add(np.array(words, np.int32), np.zeros(len(words), np.int32))


def _ints(admit: Admit) -> tuple[int, ...]:
    """Return what the ``INTS`` of a slot are when ``admit`` enters it."""
    return (
        admit.length,
        0,
        0,
        min(admit.max_outputs, 2**31 - 1),
        min(admit.min_outputs, 2**31 - 1),
        admit.top_k,
        admit.adapter,
    )


def _floats(admit: Admit) -> tuple[float, ...]:
    """Return what the ``FLOATS`` of a slot are when ``admit`` enters it."""
    return (
        0.0 if is_greedy(admit) else admit.temperature,
        admit.top_p,
        admit.min_p,
        admit.repetition_penalty,
        admit.frequency_penalty,
        admit.presence_penalty,
    )


def table_width(group: PageGroup, max_length: int) -> int:
    """Return the entries of a request's table in ``group``."""
    if group.kind == "state":
        return STATE_TABLE
    return -(-max_length // group.page_tokens)


def _page_size(group: PageGroup) -> int:
    return 0 if group.kind == "state" else group.page_tokens


class PenaltyTable:
    """What the slots' requests have in their prompts and outputs.

    Attributes:
        output_counts_SV: int32.
        prompt_mask_SV: bool.
    """

    def __init__(self, device: Device, num_slots: int, vocab_size: int) -> None:
        shape = (num_slots + 1, vocab_size)
        self.output_counts_SV = device.empty(shape, torch.int32).zero_()
        self.prompt_mask_SV = device.empty(shape, torch.bool).zero_()

    def reset(
        self, slot_1: Tensor, ids_N: Tensor, of_prompt_N: Tensor, of_output_N: Tensor
    ) -> None:
        """Enter the history of a slot.

        Args:
            slot_1: The slot. int64, as all of these are on the device.
            ids_N: Its tokens. int64.
            of_prompt_N: 1 where the prompt has them, else 0. int32.
            of_output_N: Likewise the output.
        """
        counts_2V = self.output_counts_SV.new_zeros((2, self.output_counts_SV.shape[1]))
        counts_2V.index_add_(1, ids_N, torch.stack((of_prompt_N, of_output_N)))
        self.prompt_mask_SV.index_copy_(0, slot_1, counts_2V[:1] > 0)
        self.output_counts_SV.index_copy_(0, slot_1, counts_2V[1:])


class BiasTable:
    """What is added to logits of the slots' requests; id 0 and 0.0 where there is nothing.

    Attributes:
        ids_SB: int64.
        biases_SB: float32.
    """

    def __init__(self, device: Device, num_slots: int) -> None:
        self.ids_SB = device.empty((num_slots + 1, MAX_BIASES), torch.int64).zero_()
        self.biases_SB = device.empty((num_slots + 1, MAX_BIASES), torch.float32).zero_()

    def reset(self, slot_1: Tensor, ids_B: Tensor, biases_B: Tensor) -> None:
        """Enter the biases of a slot (int64), on the device. [B] each"""
        self.ids_SB.index_copy_(0, slot_1, ids_B[None])
        self.biases_SB.index_copy_(0, slot_1, biases_B[None])


class HistoryTable:
    """The tokens of the slots' requests, for drafting; past what is known anything.

    Attributes:
        histories_SL: Prompt then outputs. int32.
    """

    def __init__(self, device: Device, num_slots: int, max_length: int) -> None:
        self.histories_SL = device.empty((num_slots + 1, max_length), torch.int32).zero_()

    def reset(self, slot_1: Tensor, history_N: Tensor) -> None:
        """Enter the history of a slot (int64), on the device; what is too long is left out."""
        history_N = history_N[: self.histories_SL.shape[1]]
        self.histories_SL[:, : len(history_N)].index_copy_(0, slot_1, history_N[None])


class OptionalTables:
    """The tables that only some requests need.

    Attributes:
        penalties: None until a request has penalties.
        biases: None until a request has biases.
        histories: None where nothing is drafted.
    """

    def __init__(self, device: Device, limits: RunnerLimits) -> None:
        self._device = device
        self._limits = limits
        self.penalties: PenaltyTable | None = None
        self.biases: BiasTable | None = None
        self.histories: HistoryTable | None = None
        if limits.max_drafts:
            self.histories = HistoryTable(device, limits.num_slots, limits.max_length)

    def penalty_table(self) -> PenaltyTable:
        """Return the table of penalties; make it first if it is not there."""
        if self.penalties is None:
            limits = self._limits
            self.penalties = PenaltyTable(self._device, limits.num_slots, limits.vocab_size)
        return self.penalties

    def bias_table(self) -> BiasTable:
        """Return the table of biases; make it first if it is not there."""
        if self.biases is None:
            self.biases = BiasTable(self._device, self._limits.num_slots)
        return self.biases

    @staticmethod
    def num_bytes(num_slots: int, vocab_size: int) -> int:
        """Return the bytes that the tables take once requests need all of them."""
        return (num_slots + 1) * (vocab_size * (4 + 1) + MAX_BIASES * (8 + 4))


def padded_biases(ids: Sequence[int], biases: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return a request's biases as a slot keeps them. int64 [B], float32 [B]"""
    all_ids, all_biases = np.zeros(MAX_BIASES, np.int64), np.zeros(MAX_BIASES, np.float32)
    all_ids[: len(ids)] = ids
    all_biases[: len(biases)] = biases
    return all_ids, all_biases
