"""What steps drew, on its way to the host and into results."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from headstock.ops.steps import FAULTY
from headstock.plugins.device import Device, Transfer
from headstock.runner.logprobs import LogprobReader, Pending
from headstock.runner.rows import LOGPROBS, RowSet
from headstock.runner.sampler import Sampler
from headstock.wire.steps import Fault, StepResult

NOT_FINITE = "The model's logits are not finite numbers."


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on the device.

    Attributes:
        step: The plan's number.
        rows: Its rows; None when it has none.
        drawn: Code and done flag of each row, on their way to the host; what is behind the rows
            is of other steps. int32. [max rows, 2]
        logprobs: Likewise, of the rows that asked.
        held: Host memory that copies to the device may still read.
    """

    step: int
    rows: RowSet | None = None
    drawn: Transfer | None = None
    logprobs: list[Pending] = field(default_factory=list[Pending])
    held: list[Tensor] = field(default_factory=list[Tensor])


class Outbox:
    """Fetches what steps drew; one host buffer for each step in flight."""

    def __init__(
        self, device: Device, sampler: Sampler, logprobs: LogprobReader, max_rows: int, depth: int
    ) -> None:
        self._device = device
        self._entries = sampler.outbox_NR2.unbind()
        self._logprobs = logprobs
        shape = (max_rows, 2)
        self._hosts = [device.host_buffer(shape, torch.int32) for _ in range(depth + 1)]
        self._turn = 0

    def fetch(
        self, step: int, rows: RowSet, entry: int, hidden_TD: Tensor | None, held: list[Tensor]
    ) -> Launched:
        """Queue what ``step`` left behind to come to the host.

        Args:
            step: The plan's number.
            rows: Its rows.
            entry: How many steps drew before it.
            hidden_TD: Of an eager step; steps with prompts to score are eager.
            held: Host memory that must live until the step has settled.
        """
        pending: list[Pending] = []
        entry %= len(self._entries)
        if LOGPROBS in rows.features and rows.wants_logprobs:
            pending.append(self._logprobs.of_outputs(rows, entry))
        if rows.scored:
            assert hidden_TD is not None, f"step {step} scores prompts and was captured"
            pending += self._logprobs.of_prompts(rows, hidden_TD)
        self._turn = (self._turn + 1) % len(self._hosts)
        drawn = self._device.fetch(self._entries[entry], self._hosts[self._turn])
        return Launched(step, rows, drawn, pending, held)


def read_result(launched: Launched) -> StepResult:
    """Wait for a step and return what it drew."""
    rows = launched.rows
    if rows is None or launched.drawn is None:
        return StepResult(launched.step, [], [], [], [])
    drawn_R2 = launched.drawn.wait().numpy()[: len(rows.inputs.slots)]
    if len(rows.sampled) < len(drawn_R2):
        drawn_R2 = drawn_R2[rows.sampled]
    codes, done = drawn_R2.T.tolist()
    sampled, slots = rows.sampled, rows.sampled_slots
    silent = frozenset(row for row, code in zip(sampled, codes, strict=True) if code < 0)
    return StepResult(
        step=launched.step,
        slots=slots,
        counts=[int(code >= 0) for code in codes],
        ids=[code for code in codes if code >= 0],
        done=done,
        logprobs=[entry for pending in launched.logprobs for entry in pending.read(silent)],
        faults=[
            Fault(slot, NOT_FINITE)
            for slot, code in zip(slots, codes, strict=True)
            if code == FAULTY
        ],
    )
