"""What a plan changes, brought to the device: slots, pages, rows. At most one copy a step."""

from __future__ import annotations

from headstock.plugins.device import Device
from headstock.runner.extras import Extras
from headstock.runner.inputs import StepInputs
from headstock.runner.mail import Mail
from headstock.runner.options import PaddedSizes
from headstock.runner.rows import NO_TREE, RowSet, SlotFacts, read_rows
from headstock.runner.slots import Edits, SlotTable
from headstock.wire.steps import RunnerLimits, StepPlan


class Staging:
    """The host's side of the slot table.

    Attributes:
        table: On the device, one entry a slot.
        inputs: On the device, the rows of the step.
        extras: On the device, what only some requests need.
        steps: Steps that drew, as many as the table's cursor has counted.
    """

    def __init__(
        self, device: Device, mail: Mail, limits: RunnerLimits, sizes: PaddedSizes
    ) -> None:
        num_slots = limits.num_slots
        max_pages = -(-limits.max_length // limits.groups[0].page_tokens)
        self.table = SlotTable(device, num_slots, max_pages)
        self.inputs = StepInputs(
            device,
            mail,
            max_rows=sizes.max_rows,
            max_tokens=sizes.max_tokens,
            depth=limits.depth,
            null_slot=num_slots,
        )
        self.extras = Extras(device, mail, num_slots, limits.vocab_size)
        self.steps = 0
        self._null_slot = num_slots
        self._edits = Edits()
        self._facts: dict[int, SlotFacts] = {}
        self._tree = NO_TREE

    def enter(self, plan: StepPlan) -> None:
        """Take note of who leaves, who comes, and of new pages."""
        for slot in plan.leave:
            self._facts.pop(slot, None)
        for admit in plan.admit:
            self._facts[admit.slot] = SlotFacts.of(admit)
            self.table.admit(self._edits, admit)
            self.extras.admit(admit)
        if plan.append.slots:
            self.table.append(self._edits, plan.append)
        if plan.tree is not None:
            self._tree = plan.tree

    def send_rows(self, rows: RowSet, padded: tuple[int, int]) -> None:
        """Queue the copy of ``rows``, padded to (tokens, rows), and of what has changed."""
        self.inputs.send_rows(rows.inputs, padded, self._edits, self.table)

    def send_edits(self) -> None:
        """Queue the copy of what has changed, if anything has; the rows stay."""
        if self._edits.count:
            self.inputs.send_edits(self._edits, self.table)

    def read_rows(self, plan: StepPlan) -> RowSet:
        """Return the rows of ``plan``, after it was entered."""
        return read_rows(plan, self._facts, self._null_slot, self._tree)

    def recover(self) -> None:
        """After a step that failed: set the table's count of steps to the host's."""
        self._edits.may_repeat = True
        self.table.set_cursor(self._edits, self.steps)
