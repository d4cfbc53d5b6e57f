"""The runner: step plans in, drawn ids out; steps queue up on the device in between."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.plugins.device import Device
from headstock.runner.arena import PageNumbers
from headstock.runner.batch import StepBuffers, StepShape
from headstock.runner.download import Download, LaunchedStep, LogprobReader, read_result
from headstock.runner.failures import check_answers, no_room_to_wake, out_of_memory
from headstock.runner.graphs import StepGraphs
from headstock.runner.media import MediaRows
from headstock.runner.options import PaddedSizes
from headstock.runner.pages import PageStore
from headstock.runner.rehearsal import rehearsal
from headstock.runner.rows import RowSet
from headstock.runner.sampling import ALL_ALLOWED, Sampler
from headstock.runner.step import ForwardPass, ModelParts, resolve_step_ops
from headstock.runner.upload import Upload
from headstock.wire.steps import (
    POOL,
    SCORE_TOKENS,
    Masks,
    RunnerLimits,
    StepHandle,
    StepPlan,
    StepResult,
)

Queued = TypeVar("Queued")


class TorchRunner:
    """Runs step plans with a model on a device.

    Between two plans everything that a request needs is on the device; a steady plan sends
    nothing but the pages that rows were given.

    Args:
        device: Where.
        parts: The model, and what runs with it.
        limits: Sizes.
        sizes: The same with padding; attention was built for these.
        captures: Whether steps become graphs where the device's policy says so.
    """

    def __init__(
        self,
        device: Device,
        parts: ModelParts,
        *,
        limits: RunnerLimits,
        sizes: PaddedSizes,
        captures: bool,
    ) -> None:
        model, rows = parts.model, sizes.max_rows
        ops = resolve_step_ops(parts.resolver, parts.dtype, limits.vocab_size)
        self._device = device
        self._parts = parts
        self._limits = limits
        numbers = PageNumbers(parts.layers, limits.groups)
        self._upload = upload = Upload(device, limits, sizes, numbers)
        self._pages = PageStore(device, upload.arrays, parts.layers, limits.groups, numbers)
        if model.media is not None and limits.media is not None:
            upload.media = MediaRows(
                device,
                upload.arrays,
                model.media,
                parts.resolver,
                limits=limits.media,
                sizes=sizes,
                dtype=parts.dtype,
            )
        buffers = StepBuffers(device, sizes, limits, upload.media)
        draft_rows = min(rows, limits.max_draft_rows)
        positions = max(rows, draft_rows * (limits.max_drafts + 1))
        forward = ForwardPass(device, parts, ops, upload, buffers, num_positions=positions)
        self._sampler = Sampler(device, parts, ops, upload, limits=limits, max_rows=rows)
        self._graphs = StepGraphs(
            device,
            forward,
            self._sampler,
            upload,
            buffers,
            limits=limits,
            sizes=sizes,
            captures=captures,
            pools_last=model.pools_last,
        )
        self._shapes = self._graphs.shapes
        logprobs = LogprobReader(device, upload.arrays, ops, model, self._sampler, rows)
        self._download = Download(device, self._sampler, logprobs, limits.depth)
        self._rows: RowSet | None = None
        self._shape: StepShape | None = None

    @property
    def limits(self) -> RunnerLimits:
        """What it can hold."""
        return self._limits

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Queue ``plan``; returns before it has run where the device works on its own.

        Should it raise, the slots are as before the step but for what the plan admitted and
        appended: the rows may be planned again, or leave.

        Raises:
            ConfigError: The device has no memory left for the step.
            DeviceError: It is lost.
        """
        rows, self._rows = self._rows, None
        launched = self._guarded(lambda: self._launch(plan, rows), plan)
        self._rows = launched.rows
        return launched

    def sample(self, handle: StepHandle, masks: Masks) -> None:
        """Queue the draws of a launched step whose plan has masked rows.

        Raises:
            ConfigError: The device has no memory left for the draws.
            DeviceError: It is lost.
        """
        assert isinstance(handle, LaunchedStep), f"{handle!r} was not launched here"
        plan, handle.plan = handle.plan, None
        assert plan is not None, f"step {handle.step} waits for no masks"
        self._guarded(lambda: self._sample(handle, plan, masks), plan)

    def result(self, handle: StepHandle) -> StepResult:
        """Wait for the step and return what it drew.

        Raises:
            DeviceError: The device is lost.
        """
        assert isinstance(handle, LaunchedStep), f"{handle!r} was not launched here"
        try:
            return read_result(handle)
        except Exception as error:
            self._check_device(handle.step, error)
            raise

    def warm_up(self, progress: Callable[[int, int], None]) -> None:
        """Capture what the device wants captured before serving, and try every feature once.

        Args:
            progress: Called with (captured, to capture) after each.
        """
        with torch.inference_mode():
            self._graphs.warm_up(progress)
        facts = self._device.facts
        if (
            facts.compiles_sizes or not facts.shares_host_memory
        ):  # they compile what they first meet
            for plan, masks in rehearsal(self._limits):
                launched = self.launch(plan)
                if masks is not None:
                    self.sample(launched, masks)
                self.result(launched)

    def release_pages(self) -> int:
        """Give the memory of all pages and graphs back to the system; returns the pages' bytes.

        No step may be in flight, and none may follow before :meth:`restore_pages`.
        """
        self._device.synchronize()
        self._rows = self._shape = None
        self._graphs.close()
        with torch.inference_mode():
            released = self._pages.drop()
        gc.collect()  # graphs may hold each other
        self._device.trim()
        return released

    def restore_pages(self) -> None:
        """Make the pages again, and capture steps on them; nothing of before is cached.

        Raises:
            ConfigError: Others have taken the memory; :meth:`release_pages` stays in force.
        """
        try:
            with torch.inference_mode():
                self._pages.make()
            self.warm_up(_silent)
        except torch.OutOfMemoryError as error:
            self.release_pages()
            raise no_room_to_wake(self._device) from error

    @property
    def media(self) -> MediaRows | None:
        """Images, where the model takes any."""
        return self._upload.media

    def close(self) -> None:
        """Drop the graphs, leave the group, wait for what is queued and free the device.

        In this order: a step that waits for a rank that is lost ends when the group is left.
        """
        self._graphs.close()
        self._parts.ranks.close()
        self._device.synchronize()
        self._device.close()

    def _guarded(self, queue: Callable[[], Queued], plan: StepPlan) -> Queued:
        """Queue part of a step; should that fail, the table's count of steps is put right."""
        try:
            with torch.inference_mode():
                return queue()
        except BaseException as error:
            if isinstance(error, Exception):
                self._check_device(plan.step, error)
            self._upload.recover()
            if isinstance(error, torch.OutOfMemoryError):
                raise out_of_memory(self._device, plan) from error
            raise

    def _check_device(self, step: int, error: Exception) -> None:
        """Raise where ``error`` came of a lost device.

        One of several ranks does not ask: what is queued may wait for a rank that is lost, and any
        failure ends them all (:class:`headstock.parallel.RankedRunner`).
        """
        if self._parts.ranks.size == 1:
            check_answers(self._device, step, error)

    def _launch(self, plan: StepPlan, last: RowSet | None) -> LaunchedStep:
        upload = self._upload
        for place, adapter in plan.adapters:
            adapters = self._parts.adapters
            assert adapters is not None, f"step {plan.step} places an adapter; there are none"
            adapters.place(place, adapter)
        upload.enter(plan)
        if not plan.rows.slots:
            upload.send_edits()
            launched = LaunchedStep(plan.step, held=upload.arrays.take())
            self._download.fetch_end(launched)
            return launched
        is_same = last is not None and plan.tree is None and last.is_repeated_by(plan)
        rows = last if last is not None and is_same else upload.read_rows(plan)
        shape = self._shapes.of(rows, max(plan.rows.kv_max))
        if is_same:
            upload.send_edits()
        else:
            upload.send_rows(rows, (shape.num_tokens, shape.num_rows))
        if plan.encode:
            assert upload.media is not None, f"step {plan.step} has images for a model of text"
            upload.media.encode(plan.encode)
        if plan.copies.sources:
            self._pages.copy(plan.copies)
        kinds = rows.draw_kinds if rows.drawn and not plan.masked else None
        ran = self._graphs.run_forward(shape, rows, plan.rows, is_same=is_same, kinds=kinds)
        self._shape = shape
        launched = LaunchedStep(plan.step, rows=rows)
        if kinds is None:
            launched.plan = plan if rows.drawn else None
        else:
            if not ran.has_drawn:
                self._graphs.run_draws(shape, kinds)
            self._fetch_draws(launched)
        if rows.scored:
            self._download.fetch_prompts(launched, ran.hidden_TD)
        if rows.pooled:
            self._pool(launched, rows, ran.hidden_TD, ran.batch)
        if not (rows.drawn or rows.scored or rows.pooled):
            self._download.fetch_end(launched)
        launched.held += upload.arrays.take()
        return launched

    def _fetch_draws(self, launched: LaunchedStep) -> None:
        """Queue the way to the host of what the step drew."""
        self._download.fetch_draws(launched, self._upload.steps)
        self._upload.steps += 1

    def _sample(self, launched: LaunchedStep, plan: StepPlan, masks: Masks) -> None:
        rows, shape = launched.rows, self._shape
        assert rows is not None, f"step {launched.step} has no rows"
        assert shape is not None, f"step {launched.step} was not the last one launched"
        self._sampler.prepare(rows.draw_kinds)
        num_words = -(-self._limits.vocab_size // 32)
        words_RJW = np.full((shape.num_rows, shape.max_draws, num_words), ALL_ALLOWED, np.int32)
        row_of_slot = {slot: row for row, slot in enumerate(rows.slots)}
        for slot, words in zip(masks.slots, masks.words, strict=True):
            found_JW = np.frombuffer(words, "<i4").reshape(-1, num_words)
            words_RJW[row_of_slot[slot], : len(found_JW)] = found_JW
        self._sampler.send_masks(words_RJW.reshape(-1, num_words))
        self._graphs.run_draws(shape, rows.draw_kinds)
        self._fetch_draws(launched)
        launched.held += self._upload.arrays.take()

    def _pool(
        self, launched: LaunchedStep, rows: RowSet, hidden_TD: Tensor | None, batch: StepBatch
    ) -> None:
        """Queue what the rows that are pooled yield. Steps with such rows are eager."""
        assert hidden_TD is not None, f"step {launched.step} is pooled and was captured"
        model, send = self._parts.model, self._upload.arrays.send_padded
        for kind, indexes in rows.pooled.items():
            if kind == POOL:
                (index_P,) = send(np.array(indexes, np.int64))
                pooled = model.pool(hidden_TD, batch, index_P)
            else:
                (places_S,) = send(_places(rows.queries, indexes))
                hidden_SD = hidden_TD.index_select(0, places_S)
                pooled = model.pool_tokens(hidden_SD, is_score=kind == SCORE_TOKENS)
            self._download.fetch_pooled(launched, kind, pooled.to(torch.float32))


def _silent(captured: int, total: int) -> None:
    """Report no progress."""


def _places(queries: list[int], rows: list[int]) -> NDArray[np.int64]:
    """Return the places of the tokens of ``rows`` among the step's, one row after another."""
    ends = np.cumsum(queries)
    return np.concatenate([np.arange(ends[row] - queries[row], ends[row]) for row in rows])
