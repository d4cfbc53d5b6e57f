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
        drawn: Code and done flag of each row, on their way to the host. int32. [R, 2]
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
        self._entries_NR2 = sampler.outbox_NR2
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
        entry %= self._entries_NR2.shape[0]
        if LOGPROBS in rows.features and rows.wants_logprobs:
            pending.append(self._logprobs.of_outputs(rows, entry))
        if rows.scored:
            assert hidden_TD is not None, f"step {step} scores prompts and was captured"
            pending += self._logprobs.of_prompts(rows, hidden_TD)
        self._turn = (self._turn + 1) % len(self._hosts)
        num_rows = len(rows.inputs.slots)
        into = self._hosts[self._turn][:num_rows]
        drawn = self._device.fetch(self._entries_NR2[entry, :num_rows], into)
        return Launched(step, rows, drawn, pending, held)


def read_result(launched: Launched) -> StepResult:
    """Wait for a step and return what it drew."""
    rows = launched.rows
    if rows is None or launched.drawn is None:
        return StepResult(launched.step, [], [], [], [])
    drawn_R2 = launched.drawn.wait().numpy()
    if len(rows.sampled) < len(drawn_R2):
        drawn_R2 = drawn_R2[rows.sampled]
    codes = drawn_R2[:, 0]
    is_drawn = codes >= 0
    silent = frozenset(rows.sampled[at] for at in (~is_drawn).nonzero()[0])
    return StepResult(
        step=launched.step,
        slots=rows.sampled_slots,
        counts=is_drawn.astype(int).tolist(),
        ids=codes[is_drawn].tolist(),
        done=drawn_R2[:, 1].tolist(),
        logprobs=[entry for pending in launched.logprobs for entry in pending.read(silent)],
        faults=[Fault(rows.sampled_slots[at], NOT_FINITE) for at in (codes == FAULTY).nonzero()[0]],
    )
