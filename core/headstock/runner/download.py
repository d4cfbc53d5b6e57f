"""What a step drew, scored and pooled, back to the host, one step late.

Logprobs are computed after the step, from what it left behind. They are never part of a graph: few
requests want them, and they change nothing that is drawn.

Shapes: S positions, V token ids, K likeliest ids, A asked ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from headstock.ops.steps import FAULTY
from headstock.plugins.device import Device, Transfer
from headstock.runner.rows import DRAFTS, LOGPROBS, RowSet, ScoredRow, SlotFacts
from headstock.runner.sampling import Sampler
from headstock.runner.step import StepModel, StepOps
from headstock.runner.upload import HostArrays
from headstock.wire.steps import POOL, Fault, Logprobs, Pooled, StepPlan, StepResult

NOT_FINITE = "The model's logits are not finite numbers."
VECTOR_NOT_FINITE = "The model's vector has elements that are not finite numbers."


@dataclass(frozen=True, slots=True)
class PendingLogprobs:
    """Logprobs of some positions on their way to the host.

    Attributes:
        owners: Whose each position is, and the row it came from; a row's follow each other. [S]
        values: Chosen, then the K likeliest, then the asked. float32. [S, 1 + K + A]
        top_ids: int32. [S, K]
        k: K.
        is_prompt: Whether they are prompt tokens.
    """

    owners: list[tuple[int, int, SlotFacts]]
    values: Transfer
    top_ids: Transfer
    k: int
    is_prompt: bool

    def read(self, counts: Mapping[int, int]) -> list[Logprobs]:
        """Wait, and return one entry a slot.

        Args:
            counts: How many ids count of each row that draws: of its drawn positions, as many have
                logprobs; of prompts, all if any do. Rows that draw nothing are not in it.
        """
        values, top_ids = self.values.wait().tolist(), self.top_ids.wait().tolist()
        found: dict[int, Logprobs] = {}
        # There may be more values than owners: padding.
        for (row, slot, facts), numbers, ids in zip(self.owners, values, top_ids, strict=False):
            count = counts.get(row, 1)
            num_read = len(found[row].chosen) if row in found else 0
            if count <= 0 or (num_read >= count and not self.is_prompt):
                continue
            k, asked = max(facts.logprobs, 0), len(facts.asked_ids)
            entry = found.setdefault(row, Logprobs(slot, self.is_prompt, [], [], [], []))
            entry.chosen.append(numbers[0])
            entry.top_ids.append(ids[:k])
            entry.top.append(numbers[1 : 1 + k])
            entry.asked.append(numbers[1 + self.k : 1 + self.k + asked])
        return list(found.values())


@dataclass(slots=True)
class LaunchedStep:
    """A step on the device.

    Attributes:
        step: The plan's number.
        plan: The plan, until its masks have come; None for others.
        rows: Its rows; None when it has none.
        drawn: How many ids count, done flag and ids of each row, on their way to the host; what is
            behind the rows is of other steps. int32. [max rows, 2 + J]
        logprobs: Likewise, of the rows that asked.
        pooled: Likewise, what the pooled rows yield, by kind: of each row, or of each of the rows'
            tokens in turn. float32. [pooled rows or tokens, D]
        over: What says that a step which yields nothing is over.
        held: Host memory that copies to the device may still read.
    """

    step: int
    plan: StepPlan | None = None
    rows: RowSet | None = None
    drawn: Transfer | None = None
    logprobs: list[PendingLogprobs] = field(default_factory=list[PendingLogprobs])
    pooled: dict[int, Transfer] = field(default_factory=dict[int, Transfer])
    over: Transfer | None = None
    held: list[Tensor] = field(default_factory=list[Tensor])


class LogprobReader:
    """Queues the computation of logprobs and their way to the host.

    Args:
        device: Where steps run.
        arrays: Carries ids to the device.
        ops: The step's ops.
        model: Turns hidden states of prompts into logits.
        sampler: Keeps the logits that tokens were drawn from.
        max_rows: Prompt positions to have logits of at a time: what a step has of rows, so that
            they take no more memory than its own.
    """

    def __init__(
        self,
        device: Device,
        arrays: HostArrays,
        ops: StepOps,
        model: StepModel,
        sampler: Sampler,
        max_rows: int,
    ) -> None:
        self._device = device
        self._arrays = arrays
        self._ops = ops
        self._model = model
        self._sampler = sampler
        self._max_rows = max_rows

    def of_outputs(self, rows: RowSet, outbox_entry: int) -> list[PendingLogprobs]:
        """Queue the logprobs of what the step drew for the rows that asked, some rows at a time.

        Each position that such a row draws from has them: how many of its drafts are right is not
        known here yet.
        """
        owners, at_once = rows.wants_logprobs, max(1, self._max_rows // rows.max_draws)
        return [
            self._of_outputs(rows, owners[start : start + at_once], outbox_entry)
            for start in range(0, len(owners), at_once)
        ]

    def _of_outputs(
        self, rows: RowSet, owners: list[tuple[int, int, SlotFacts]], outbox_entry: int
    ) -> PendingLogprobs:
        assert self._sampler.raw_logits_SV is not None, "the step kept no logits"
        drawn_RO = self._sampler.outbox_NRO[outbox_entry]
        places = np.array(
            [
                (row * rows.max_draws + draw, row * drawn_RO.shape[1] + 2 + draw)
                for row, _, _ in owners
                for draw in range(rows.num_draws[row])
            ],
            np.int64,
        )
        place_S, word_S = self._arrays.send_padded(*places.T)
        logits_SV = self._sampler.raw_logits_SV.index_select(0, place_S)
        ids_S = drawn_RO.flatten().index_select(0, word_S).clamp(min=0).long()
        each = [owner for owner in owners for _ in range(rows.num_draws[owner[0]])]
        return self._queue(logits_SV, ids_S, each, is_prompt=False)

    def of_prompts(self, rows: RowSet, hidden_TD: Tensor) -> list[PendingLogprobs]:
        """Queue the logprobs of prompt tokens, some positions at a time."""
        return [
            self._of_prompt(row, scored, start, hidden_TD)
            for row, scored in enumerate(rows.scored)
            for start in range(0, len(scored.target_ids), self._max_rows)
        ]

    def _of_prompt(
        self, row: int, scored: ScoredRow, start: int, hidden_TD: Tensor
    ) -> PendingLogprobs:
        targets = scored.target_ids[start : start + self._max_rows]
        begin = scored.begin + start
        places = np.arange(begin, begin + len(targets))
        places_S, ids_S = self._arrays.send_padded(places, np.array(targets, np.int64))
        logits_SV = self._model.logits(hidden_TD.index_select(0, places_S))
        owners = [(row, scored.slot, scored.facts)] * len(targets)
        return self._queue(logits_SV, ids_S, owners, is_prompt=True)

    def _queue(
        self,
        logits_SV: Tensor,
        ids_S: Tensor,
        owners: list[tuple[int, int, SlotFacts]],
        *,
        is_prompt: bool,
    ) -> PendingLogprobs:
        k = self._arrays.padded_size(max(max(facts.logprobs, 0) for _, _, facts in owners))
        k = min(k, logits_SV.shape[1])
        asked_SA = self._asked([facts.asked_ids for _, _, facts in owners], len(ids_S))
        chosen_S, top_SK, top_ids_SK, of_asked_SA = self._ops.token_logprobs(
            logits_SV, ids_S, asked_SA, k=k
        )
        values = torch.cat((chosen_S.unsqueeze(1), top_SK, of_asked_SA), dim=1)
        return PendingLogprobs(
            owners=owners,
            values=self._fetch(values),
            top_ids=self._fetch(top_ids_SK.to(torch.int32)),
            k=k,
            is_prompt=is_prompt,
        )

    def _asked(self, asked_ids: Sequence[tuple[int, ...]], num_positions: int) -> Tensor:
        """Return the asked ids of each position, padded with id 0. int64. [S, A]"""
        most = self._arrays.padded_size(max(map(len, asked_ids)))
        asked = np.zeros((num_positions, most), np.int64)
        for row, ids in zip(asked, asked_ids, strict=False):
            row[: len(ids)] = ids
        return self._arrays.send(asked)

    def _fetch(self, source: Tensor) -> Transfer:
        return _fetch(self._device, source)


class Download:
    """Fetches what steps drew; one host buffer for each step in flight."""

    def __init__(
        self, device: Device, sampler: Sampler, logprobs: LogprobReader, depth: int
    ) -> None:
        self._device = device
        self._entries = sampler.outbox_NRO.unbind()
        self._logprobs = logprobs
        shape = tuple(self._entries[0].shape)
        self._hosts = [_host_buffer(device, shape, torch.int32) for _ in range(depth + 1)]
        self._turn = 0
        self._mark_1 = device.empty((1,), torch.int32).zero_()
        self._marks = [_host_buffer(device, (1,), torch.int32) for _ in self._hosts]
        self._mark_turn = 0

    def fetch_end(self, launched: LaunchedStep) -> None:
        """Queue a copy behind a step that yields nothing, such as a chunk of a prompt.

        Its result is then waited for like any other's. Else steps would pile up on the device, and
        the buffers that they read their rows from be written anew while they are still to be read.
        """
        self._mark_turn = (self._mark_turn + 1) % len(self._marks)
        launched.over = self._device.fetch(self._mark_1, self._marks[self._mark_turn])

    def fetch_prompts(self, launched: LaunchedStep, hidden_TD: Tensor | None) -> None:
        """Queue the logprobs of prompts. Steps that score prompts are eager."""
        rows = launched.rows
        assert rows is not None, f"step {launched.step} has no rows"
        assert hidden_TD is not None, f"step {launched.step} scores prompts and was captured"
        launched.logprobs += self._logprobs.of_prompts(rows, hidden_TD)

    def fetch_draws(self, launched: LaunchedStep, entry: int) -> None:
        """Queue what the step drew.

        Args:
            launched: Of which the draws are queued.
            entry: How many steps drew before it.
        """
        rows = launched.rows
        assert rows is not None, f"step {launched.step} has no rows"
        entry %= len(self._entries)
        if rows.wants_logprobs and LOGPROBS in rows.draw_kinds:
            launched.logprobs += self._logprobs.of_outputs(rows, entry)
        self._turn = (self._turn + 1) % len(self._hosts)
        launched.drawn = self._device.fetch(self._entries[entry], self._hosts[self._turn])

    def fetch_pooled(self, launched: LaunchedStep, kind: int, pooled_PD: Tensor) -> None:
        """Queue what rows yield that are pooled as ``kind`` says. float32. [rows or tokens, D]"""
        launched.pooled[kind] = _fetch(self._device, pooled_PD)


def _fetch(device: Device, source: Tensor) -> Transfer:
    return device.fetch(source, _host_buffer(device, tuple(source.shape), source.dtype))


def _host_buffer(device: Device, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a buffer that may be written to outside of inference mode, where results are read."""
    with torch.inference_mode(mode=False):
        return device.host_buffer(shape, dtype)


def read_result(launched: LaunchedStep) -> StepResult:
    """Wait for a step and return what it yielded."""
    rows = launched.rows
    if launched.over is not None:
        launched.over.wait()
    if rows is None:
        return StepResult(launched.step, [], [], [], [])
    codes, done, ids = _read_draws(launched, rows)
    drafts = _read_drafts(launched, rows) if DRAFTS in rows.draw_kinds else []
    is_plain = not launched.logprobs and not launched.pooled
    if is_plain and (not codes or min(codes) > 0):
        return StepResult(launched.step, rows.drawn_slots, codes, ids, done, drafts=drafts)
    counts = dict(zip(rows.drawn, codes, strict=True)) if launched.logprobs else {}
    pooled, spoilt = _read_pooled(launched, rows)
    faulty = [slot for slot, code in zip(rows.drawn_slots, codes, strict=True) if code == FAULTY]
    return StepResult(
        step=launched.step,
        slots=rows.drawn_slots,
        counts=[max(code, 0) for code in codes],
        ids=ids,
        done=done,
        logprobs=[entry for pending in launched.logprobs for entry in pending.read(counts)],
        faults=[
            *(Fault(slot, NOT_FINITE) for slot in faulty),
            *(Fault(slot, VECTOR_NOT_FINITE) for slot in spoilt),
        ],
        pooled=pooled,
        drafts=drafts,
    )


def _read_draws(launched: LaunchedStep, rows: RowSet) -> tuple[list[int], list[int], list[int]]:
    """Return the codes and done flags of the rows that draw, and the ids that count."""
    if not rows.drawn:
        return [], [], []
    assert launched.drawn is not None, f"step {launched.step} was not drawn from"
    drawn_RO = launched.drawn.wait().numpy()[: len(rows.slots)]
    if len(rows.drawn) < len(drawn_RO):
        drawn_RO = drawn_RO[rows.drawn]
    if rows.max_draws == 1:
        codes, done, ids = drawn_RO[:, :3].T.tolist()
        if min(codes) == 1:
            return codes, done, ids
        return codes, done, [n for n, code in zip(ids, codes, strict=True) if code > 0]
    entries = drawn_RO.tolist()
    ids = [token for entry in entries for token in entry[2 : 2 + max(entry[0], 0)]]
    return [entry[0] for entry in entries], [entry[1] for entry in entries], ids


def _read_drafts(launched: LaunchedStep, rows: RowSet) -> list[int]:
    """Return how many drafts each row that draws has for its next step."""
    if launched.drawn is None:
        return []
    counts_R = launched.drawn.wait().numpy()[: len(rows.slots), -1]
    if len(rows.drawn) < len(counts_R):
        counts_R = counts_R[rows.drawn]
    return counts_R.tolist()


def _read_pooled(launched: LaunchedStep, rows: RowSet) -> tuple[list[Pooled], list[int]]:
    """Return what pooled rows yield, and the slots whose values are not finite."""
    pooled: list[Pooled] = []
    spoilt: list[int] = []
    for kind, transfer in launched.pooled.items():
        values_PD = transfer.wait().numpy().astype("<f4", copy=False)
        end = 0
        for row in rows.pooled[kind]:
            begin = end
            end += 1 if kind == POOL else rows.queries[row]
            found_SD = values_PD[begin:end]
            if np.isfinite(found_SD).all():
                pooled.append(Pooled(rows.slots[row], found_SD.tobytes()))
            else:
                spoilt.append(rows.slots[row])
    return pooled, spoilt
