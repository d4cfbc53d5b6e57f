"""The runner: step plans in, drawn ids out; steps queue up on the device in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from headstock.ops.base import Resolver
from headstock.ops.communication import Group
from headstock.plugins.device import Device
from headstock.runner.batch import StepBuffers
from headstock.runner.execution import Execution
from headstock.runner.exhausted import out_of_memory
from headstock.runner.logprobs import LogprobReader
from headstock.runner.mail import Mail
from headstock.runner.options import PaddedSizes
from headstock.runner.outbox import Launched, Outbox, read_result
from headstock.runner.pages import PageStore
from headstock.runner.profile import rehearsal
from headstock.runner.program import CachedLayer, StepModel, StepProgram
from headstock.runner.rows import SAMPLE, RowSet
from headstock.runner.sampler import Sampler
from headstock.runner.staging import Staging
from headstock.runner.step_ops import resolve_step_ops
from headstock.wire.steps import Masks, RunnerLimits, StepHandle, StepPlan, StepResult


class TorchRunner:
    """Runs step plans with a model on a device.

    Between two plans everything that a request needs is on the device; a steady plan sends
    nothing but the pages that rows were given.

    Args:
        device: Where.
        model: What is computed.
        layers: Its attention layers; they get their pages here.
        resolver: Chooses the ops around the model.
        group: Ranks that run the same plans; rank 0's draws count.
        limits: Sizes.
        sizes: The same with padding; attention was built for these.
        dtype: Of the hidden states.
        captures: Whether steps become graphs where the device's policy says so.
    """

    def __init__(
        self,
        device: Device,
        model: StepModel,
        layers: Sequence[CachedLayer],
        resolver: Resolver,
        group: Group,
        *,
        limits: RunnerLimits,
        sizes: PaddedSizes,
        dtype: torch.dtype,
        captures: bool,
    ) -> None:
        pages, rows = limits.groups[0], sizes.max_rows
        ops = resolve_step_ops(resolver, dtype, limits.vocab_size)
        self._device = device
        self._limits = limits
        self._mail = Mail(device)
        self._staging = Staging(device, self._mail, limits, sizes)
        self._pages = PageStore(device, self._mail, layers, pages.num_pages)
        buffers = StepBuffers(
            device, sizes, self._staging.table.max_pages, page_size=pages.page_tokens
        )
        sampler = Sampler(device, ops, self._staging, group, limits=limits, max_rows=rows)
        program = StepProgram(model, layers, ops, self._staging, buffers, sampler)
        self._execution = Execution(
            device,
            program,
            self._staging,
            buffers,
            sampler,
            max_length=limits.max_length,
            sizes=sizes,
            captures=captures,
        )
        logprobs = LogprobReader(device, self._mail, ops, model, sampler, rows)
        self._outbox = Outbox(device, sampler, logprobs, rows, limits.depth)
        self._rows: RowSet | None = None

    @property
    def limits(self) -> RunnerLimits:
        """What it can hold."""
        return self._limits

    def launch(self, plan: StepPlan) -> Launched:
        """Queue ``plan``; returns before it has run where the device works on its own.

        Should it raise, the slots are as before the step but for what the plan admitted and
        appended: the rows may be planned again, or leave.

        Raises:
            ConfigError: The device has no memory left for the step.
        """
        rows, self._rows = self._rows, None
        try:
            with torch.inference_mode():
                launched = self._launch(plan, rows)
        except torch.OutOfMemoryError as error:
            self._staging.recover()
            raise out_of_memory(self._device, plan) from error
        except BaseException:
            self._staging.recover()
            raise
        self._rows = launched.rows
        return launched

    def sample(self, handle: StepHandle, masks: Masks) -> None:
        """Queue the draws of a launched step with masked rows."""
        raise AssertionError(f"step {handle.step} has masks, and this runner takes none")

    def result(self, handle: StepHandle) -> StepResult:
        """Wait for the step and return what it drew."""
        assert isinstance(handle, Launched), f"{handle!r} was not launched here"
        return read_result(handle)

    def warm_up(self, progress: Callable[[int, int], None]) -> None:
        """Capture what the device wants captured before serving, and try every feature once.

        Args:
            progress: Called with (captured, to capture) after each.
        """
        with torch.inference_mode():
            self._execution.warm_up(progress)
        if self._device.torch_device.type != "cpu":  # others compile what they first meet
            for plan in rehearsal(self._limits):
                self.result(self.launch(plan))

    def close(self) -> None:
        """Wait for what is queued and free the device."""
        self._device.synchronize()
        self._device.close()

    def _launch(self, plan: StepPlan, last: RowSet | None) -> Launched:
        staging = self._staging
        staging.enter(plan)
        if not plan.rows.slots:
            staging.send_edits()
            return Launched(plan.step, held=self._mail.take())
        is_same = last is not None and plan.tree is None and last.is_repeated_by(plan)
        rows = last if last is not None and is_same else staging.read_rows(plan)
        shape = self._execution.shape(rows, max(plan.rows.kv_max))
        if is_same:
            staging.send_edits()
        else:
            staging.send_rows(rows, (shape.num_tokens, shape.num_rows))
        if plan.copies.sources:
            self._pages.copy(plan.copies)
        hidden_TD = self._execution.run(shape, rows.features, plan.rows, is_same=is_same)
        entry = staging.steps
        launched = self._outbox.fetch(plan.step, rows, entry, hidden_TD, self._mail.take())
        staging.steps += SAMPLE in rows.features
        return launched
