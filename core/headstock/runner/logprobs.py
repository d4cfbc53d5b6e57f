"""Logprobs of drawn tokens and of prompts: computed after the step, from what it left behind.

Never part of a graph: few requests want them, and they change nothing that is drawn.

Shapes: S positions, V token ids, K likeliest ids, A asked ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headstock.plugins.device import Device, Transfer
from headstock.runner.mail import Mail
from headstock.runner.program import StepModel
from headstock.runner.rows import RowSet, ScoredRow, SlotFacts
from headstock.runner.sampler import Sampler
from headstock.runner.step_ops import StepOps
from headstock.wire.steps import Logprobs


@dataclass(frozen=True, slots=True)
class Pending:
    """Logprobs of some positions on their way to the host.

    Attributes:
        owners: Whose each position is, and the row it came from. [S]
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

    def read(self, dead_rows: frozenset[int]) -> list[Logprobs]:
        """Wait, and return one entry a slot; rows that drew nothing have none."""
        values, top_ids = self.values.wait().tolist(), self.top_ids.wait().tolist()
        found: dict[int, Logprobs] = {}
        for (row, slot, facts), numbers, ids in zip(self.owners, values, top_ids, strict=True):
            if row in dead_rows:
                continue
            k, asked = max(facts.logprobs, 0), len(facts.asked_ids)
            entry = found.setdefault(row, Logprobs(slot, self.is_prompt, [], [], [], []))
            entry.chosen.append(numbers[0])
            entry.top_ids.append(ids[:k])
            entry.top.append(numbers[1 : 1 + k])
            entry.asked.append(numbers[1 + self.k : 1 + self.k + asked])
        return list(found.values())


class LogprobReader:
    """Queues the computation of logprobs and their way to the host.

    Args:
        device: Where steps run.
        mail: Carries ids to the device.
        ops: The step's ops.
        model: Turns hidden states of prompts into logits.
        sampler: Keeps the logits that tokens were drawn from.
        max_rows: Prompt positions to have logits of at a time: what a step has of rows, so that
            they take no more memory than its own.
    """

    def __init__(
        self,
        device: Device,
        mail: Mail,
        ops: StepOps,
        model: StepModel,
        sampler: Sampler,
        max_rows: int,
    ) -> None:
        self._device = device
        self._mail = mail
        self._ops = ops
        self._model = model
        self._sampler = sampler
        self._max_rows = max_rows

    def of_outputs(self, rows: RowSet, outbox_entry: int) -> Pending:
        """Queue the logprobs of what the step drew for the rows that asked."""
        assert self._sampler.raw_logits_RV is not None, "the step kept no logits"
        owners = rows.wants_logprobs
        index_S = self._mail.send(np.array([row for row, _, _ in owners], np.int64))
        logits_SV = self._sampler.raw_logits_RV.index_select(0, index_S)
        drawn_R = self._sampler.outbox_NR2[outbox_entry, :, 0]
        ids_S = drawn_R.index_select(0, index_S).clamp(min=0).long()
        return self._queue(logits_SV, ids_S, owners, is_prompt=False)

    def of_prompts(self, rows: RowSet, hidden_TD: Tensor) -> list[Pending]:
        """Queue the logprobs of prompt tokens, some positions at a time."""
        return [
            self._of_prompt(row, scored, start, hidden_TD)
            for row, scored in enumerate(rows.scored)
            for start in range(0, len(scored.target_ids), self._max_rows)
        ]

    def _of_prompt(self, row: int, scored: ScoredRow, start: int, hidden_TD: Tensor) -> Pending:
        targets = scored.target_ids[start : start + self._max_rows]
        begin = scored.begin + start
        logits_SV = self._model.logits(hidden_TD[begin : begin + len(targets)])
        ids_S = self._mail.send(np.array(targets, np.int64))
        owners = [(row, scored.slot, scored.facts)] * len(targets)
        return self._queue(logits_SV, ids_S, owners, is_prompt=True)

    def _queue(
        self,
        logits_SV: Tensor,
        ids_S: Tensor,
        owners: list[tuple[int, int, SlotFacts]],
        *,
        is_prompt: bool,
    ) -> Pending:
        k = max(max(facts.logprobs, 0) for _, _, facts in owners)
        asked_SA = self._asked([facts.asked_ids for _, _, facts in owners])
        chosen_S, top_SK, top_ids_SK, of_asked_SA = self._ops.token_logprobs(
            logits_SV, ids_S, asked_SA, k=k
        )
        values = torch.cat((chosen_S.unsqueeze(1), top_SK, of_asked_SA), dim=1)
        return Pending(
            owners=owners,
            values=self._fetch(values),
            top_ids=self._fetch(top_ids_SK.to(torch.int32)),
            k=k,
            is_prompt=is_prompt,
        )

    def _asked(self, asked_ids: Sequence[tuple[int, ...]]) -> Tensor:
        """Return the asked ids of each position, padded with id 0. int64. [S, A]"""
        asked = np.zeros((len(asked_ids), max(map(len, asked_ids))), np.int64)
        for row, ids in zip(asked, asked_ids, strict=True):
            row[: len(ids)] = ids
        return self._mail.send(asked)

    def _fetch(self, source: Tensor) -> Transfer:
        into = self._device.host_buffer(tuple(source.shape), source.dtype)
        return self._device.fetch(source, into)
