"""How the halves of a step are run: eagerly or as a graph, prepared anew or as is.

The forward pass is captured by shape, drawing by rows and draw kinds: graphs are as many as both
together, not as their product. Greedy steps of few rows are one graph more, of both halves: where a
step is short, the boundary between two graphs is 1% of it. All that is captured is captured before
serving, but on devices where a capture costs no more than the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.steps import StepInputs
from headstock.plugins.device import Device, Graph, GraphKey
from headstock.runner.batch import StepBuffers, StepShape, StepShapes
from headstock.runner.captures import Captures, graph_key
from headstock.runner.options import PaddedSizes
from headstock.runner.rows import (
    BIAS,
    DRAFTS,
    FLOOR,
    GREEDY,
    LOGPROBS,
    MASKS,
    PENALTIES,
    RANDOM,
    RowSet,
)
from headstock.runner.sampling import Sampler
from headstock.runner.step import ForwardPass
from headstock.runner.upload import Upload
from headstock.wire.steps import Rows, RunnerLimits

CAPTURED_KINDS = (GREEDY, frozenset({RANDOM}))
"""Draw kinds that are captured, with drafts and without; a step of others draws eagerly."""

PAIRED_ROWS = 8
"""Rows up to which greedy steps have both halves in one graph."""

SHAPED = frozenset({RANDOM, PENALTIES, BIAS, FLOOR, LOGPROBS})
"""Everything but masks: what other steps draw with where every set of kinds is compiled."""
MASKED = SHAPED | {MASKS}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step that attention has prepared for.

    Attributes:
        shape: Its size.
        batch: Its tensors.
        inputs: Its rows.
        key: Of the graph that fits, with what attention decided that it bakes in.
        graph: That graph, where it was captured.
        pair: Likewise, with greedy draws.
    """

    shape: StepShape
    batch: StepBatch
    inputs: StepInputs
    key: GraphKey
    graph: Graph | None
    pair: Graph | None


class ForwardRun(NamedTuple):
    """What queueing a forward pass gave.

    Attributes:
        hidden_TD: The last hidden states, of a step that ran eagerly. [T, D]
        batch: What attention had.
        has_drawn: Whether the step's draws are queued, too.
    """

    hidden_TD: Tensor | None
    batch: StepBatch
    has_drawn: bool


class StepGraphs:
    """Prepares attention for steps and runs both halves of them.

    Args:
        device: Where.
        forward: The first half.
        sampler: The second.
        upload: Where the rows are.
        buffers: Where the inputs go.
        limits: Of the runner.
        sizes: Of the buffers.
        captures: Whether steps become graphs where the device's policy says so.
        pools_last: Whether pooling needs the hidden states of rows' last tokens alone.
    """

    def __init__(
        self,
        device: Device,
        forward: ForwardPass,
        sampler: Sampler,
        upload: Upload,
        buffers: StepBuffers,
        *,
        limits: RunnerLimits,
        sizes: PaddedSizes,
        captures: bool,
        pools_last: bool,
    ) -> None:
        self._forward = forward
        self._sampler = sampler
        self._upload = upload
        self._buffers = buffers
        self._captures = captures
        self._pools_last = pools_last
        self._captures_on_use = device.facts.captures_on_use
        self._compiles_sizes = device.facts.compiles_sizes
        self._needs_host_lengths = device.facts.needs_host_lengths
        self._captured = Captures(device, forward, sampler, upload, buffers)
        self._drawings = self._captured.drawings
        self.shapes = StepShapes(device, limits=limits, sizes=sizes, captures=captures)
        """Chooses the size of each step."""
        self._prepared: Prepared | None = None

    def run_forward(
        self,
        shape: StepShape,
        rows: RowSet,
        bounds: Rows,
        *,
        is_same: bool,
        kinds: frozenset[str] | None,
    ) -> ForwardRun:
        """Queue the forward pass of a step whose rows are on the device.

        Args:
            shape: Its size.
            rows: Its rows.
            bounds: Their upper bounds; attention has them if the step runs eagerly.
            is_same: Whether they are the last step's, some tokens further.
            kinds: What its draws must do, where they follow at once.
        """
        prepared = self._prepare(shape, rows, bounds, is_same=is_same)
        batch = prepared.batch
        if not shape.is_captured:
            return ForwardRun(self._forward.run(batch, prepared.inputs, shape), batch, False)
        is_pair = kinds == GREEDY and self._is_paired(shape)
        graph = prepared.pair if is_pair else prepared.graph
        if graph is None:
            if not self._captures_on_use:
                return ForwardRun(self._forward.run(batch, prepared.inputs, shape), batch, False)
            graph = self._captured.capture_forward(shape, prepared.key, with_draws=is_pair)
            self._forward.plan(batch)
            which = {"pair" if is_pair else "graph": graph}
            self._prepared = replace(prepared, **which)
        graph.replay()
        return ForwardRun(None, batch, is_pair)

    def run_draws(self, shape: StepShape, kinds: frozenset[str]) -> None:
        """Queue the draws of the step whose forward pass was queued last."""
        num_rows, num_draws = shape.num_rows, shape.max_draws
        if self._compiles_sizes:
            kinds = few_kinds(kinds)
        if shape.is_captured or (self._compiles_sizes and self._captures):
            drawing = self._drawings.get((num_rows, num_draws, kinds))
            if drawing is None and self._captures_on_use:
                drawing = self._captured.capture_draws(shape, kinds)
            if drawing is not None:
                drawing.replay()
                return
        self._sampler.prepare(kinds)
        inputs = self._upload.rows.inputs(shape.num_tokens, num_rows)
        hidden_SD = self._forward.hidden_SD[: num_rows * num_draws]
        self._sampler.run(hidden_SD, inputs, num_draws, kinds)

    def warm_up(self, progress: Callable[[int, int], None]) -> None:
        """Capture the steps that the device's policy names, largest first.

        Args:
            progress: Called with (captured, to capture) after each.
        """
        self.shapes.forget()
        self._prepared = None
        shapes = self.shapes.to_warm()
        if self._compiles_sizes:
            self._upload.warm_up(sorted({shape.num_tokens for shape in shapes}))
        by_key: dict[GraphKey, StepShape] = {}
        for shape in shapes:  # attention that ignores trees needs one graph for both
            provider = self._forward.plan(self._captured.batch(shape)[0])
            by_key.setdefault(graph_key(shape, provider), shape)
        draws = self._draws_to_warm(shapes)
        forwards = [(shape, key, False) for key, shape in by_key.items()]
        forwards += [(shape, key, True) for key, shape in by_key.items() if self._is_paired(shape)]
        total = len(forwards) + len(draws)
        for count, (shape, key, with_draws) in enumerate(forwards, 1):
            self._captured.capture_forward(shape, key, with_draws=with_draws)
            progress(count, total)
        for count, (shape, kinds) in enumerate(draws, len(forwards) + 1):
            self._captured.capture_draws(shape, kinds)
            progress(count, total)

    def close(self) -> None:
        """Drop all graphs: collectives that they hold keep a group from ending."""
        self.shapes.forget()
        self._prepared = None
        self._captured.clear()

    def _draws_to_warm(self, shapes: list[StepShape]) -> list[tuple[StepShape, frozenset[str]]]:
        """Return the halves that draw: one for each number of rows and draws, and draw kinds.

        With a drafter, steps of several draws a row always draft on.
        """
        by_size = {(shape.num_rows, shape.max_draws): shape for shape in shapes}
        wanted = (*CAPTURED_KINDS, SHAPED, MASKED) if self._compiles_sizes else CAPTURED_KINDS
        found = [(shape, kinds) for shape in by_size.values() for kinds in wanted]
        if self._sampler.drafter is None:
            return found
        plain = [(shape, kinds) for shape, kinds in found if shape.max_draws == 1]
        return plain + [(shape, kinds | {DRAFTS}) for shape, kinds in found]

    def _prepare(self, shape: StepShape, rows: RowSet, bounds: Rows, *, is_same: bool) -> Prepared:
        """Have attention prepare, unless all that it knows of the step is as it was."""
        last, self._prepared = self._prepared, None  # stays unset if planning fails
        may_stay = is_same and shape.is_captured and not self._needs_host_lengths
        if may_stay and last is not None and last.shape is shape:
            self._prepared = last
            return last
        if shape.is_captured:
            batch, inputs = self._captured.batch(shape)
            if self._needs_host_lengths:
                _enter_lengths(batch, bounds, shape.max_query if shape.is_uniform else 1)
        else:
            is_exact = shape.num_rows == len(rows.queries)
            pairs = zip(bounds.query_max, bounds.kv_max, strict=True)
            host_rows = list(pairs) if is_exact else []
            inputs = self._upload.rows.inputs(shape.num_tokens, shape.num_rows)
            is_whole = bool(rows.scored or (rows.pooled and not self._pools_last))
            batch = self._buffers.batch(
                shape, self._upload.rows, inputs, host_rows, is_whole=is_whole
            )
        key = graph_key(shape, self._forward.plan(batch))
        graph, pair = self._captured.forwards.get(key), self._captured.pairs.get(key)
        self._prepared = Prepared(shape, batch, inputs, key, graph, pair)
        return self._prepared

    def _is_paired(self, shape: StepShape) -> bool:
        """Whether greedy steps of ``shape`` have both halves in one graph."""
        is_short = shape.is_uniform and shape.max_query == 1 and shape.num_rows <= PAIRED_ROWS
        return is_short and not shape.has_adapters and not self._compiles_sizes


def few_kinds(kinds: frozenset[str]) -> frozenset[str]:
    """Return draw kinds that do what ``kinds`` ask, of few sets, where each is compiled.

    What a row does not ask for changes nothing for it.
    """
    others = kinds - {RANDOM, DRAFTS}
    if not others:
        return kinds
    return (MASKED if MASKS in kinds else SHAPED) | (kinds & {DRAFTS})


def _enter_lengths(batch: StepBatch, bounds: Rows, query: int) -> None:
    """Give a captured batch the rows' own lengths; padding rows have ``query`` tokens alone."""
    own = list(zip(bounds.query_max, bounds.kv_max, strict=True))
    host_rows = own + [(query, query)] * (batch.num_rows - len(own))
    for view in batch.groups:
        view.host_rows = host_rows
