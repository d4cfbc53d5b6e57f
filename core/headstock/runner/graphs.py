"""How the halves of a step are run: at what size, eagerly or as a graph, prepared anew or as is.

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
from headstock.runner.batch import StepBuffers, StepShape, captured_shape, kv_bucket
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

ADAPTERS = "adapters"
"""Feature of a captured forward pass some of whose rows have LoRA adapters."""
DRAWS = "draws"
"""Feature of a captured forward pass with greedy draws behind it."""
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
    """Chooses the size of steps, prepares attention for them, and runs both halves.

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
        self._device = device
        self._policy = device.graph_policy
        self._forward = forward
        self._sampler = sampler
        self._upload = upload
        self._buffers = buffers
        self._limits = limits
        self._sizes = sizes
        self._captures = captures
        self._pools_last = pools_last
        self._captures_on_use = device.facts.captures_on_use
        self._compiles_sizes = device.facts.compiles_sizes
        self._needs_host_lengths = device.facts.needs_host_lengths
        self._batches: dict[StepShape, tuple[StepBatch, StepInputs]] = {}
        self._sized: tuple[RowSet, StepShape] | None = None
        self._prepared: Prepared | None = None
        self._graphs: dict[GraphKey, Graph] = {}
        self._pairs: dict[GraphKey, Graph] = {}
        self._drawings: dict[tuple[int, int, frozenset[str]], Graph] = {}

    @property
    def count(self) -> int:
        """How many graphs there are."""
        return len(self._graphs) + len(self._pairs) + len(self._drawings)

    def shape(self, rows: RowSet, max_kv: int) -> StepShape:
        """Return the size that a step of ``rows``, up to ``max_kv`` tokens long, runs at.

        The last step's rows have its size until they outgrow its bucket.
        """
        if self._sized is not None:
            last, shape = self._sized
            if last is rows and max_kv <= shape.max_kv:
                return shape
        shape = self._choose_shape(rows, max_kv)
        self._sized = (rows, shape) if shape.is_captured else None
        return shape

    def _choose_shape(self, rows: RowSet, max_kv: int) -> StepShape:
        num_tokens, num_rows = len(rows.host_ids), len(rows.queries)
        has_tree = bool(rows.tree.row_begin)
        is_eager = bool(rows.scored or rows.pooled or rows.has_media)
        if self._captures and (not is_eager or (self._compiles_sizes and not rows.has_media)):
            shape = captured_shape(
                self._policy,
                self._sizes,
                num_tokens,
                num_rows,
                kv_bucket(max_kv, self._limits.max_length),
                max_draws=rows.max_draws,
                is_uniform=rows.is_uniform,
                has_tree=has_tree,
                has_adapters=rows.has_adapters,
            )
            if shape is not None and self._has_room(shape):
                return replace(shape, is_captured=not is_eager)
        return StepShape(
            num_tokens,
            num_rows,
            max(rows.queries),
            max_kv,
            rows.max_draws,
            is_uniform=rows.is_uniform,
            is_captured=False,
            has_tree=has_tree,
            has_media=rows.has_media,
            has_adapters=rows.has_adapters,
        )

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
            graph = self._capture_forward(shape, prepared.key, with_draws=is_pair)
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
                drawing = self._capture_draws(shape, kinds)
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
        self._sized = self._prepared = None
        shapes = self._shapes_to_warm() if self._captures else []
        if self._compiles_sizes:
            self._upload.warm_up(sorted({shape.num_tokens for shape in shapes}))
        by_key: dict[GraphKey, StepShape] = {}
        for shape in shapes:  # attention that ignores trees needs one graph for both
            by_key.setdefault(_graph_key(shape, self._forward.plan(self._batch(shape)[0])), shape)
        draws = self._draws_to_warm(shapes)
        forwards = [(shape, key, False) for key, shape in by_key.items()]
        forwards += [(shape, key, True) for key, shape in by_key.items() if self._is_paired(shape)]
        total = len(forwards) + len(draws)
        for count, (shape, key, with_draws) in enumerate(forwards, 1):
            self._capture_forward(shape, key, with_draws=with_draws)
            progress(count, total)
        for count, (shape, kinds) in enumerate(draws, len(forwards) + 1):
            self._capture_draws(shape, kinds)
            progress(count, total)

    def close(self) -> None:
        """Drop all graphs: collectives that they hold keep a group from ending."""
        self._sized = self._prepared = None
        self._graphs.clear()
        self._pairs.clear()
        self._drawings.clear()

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

    def _has_room(self, shape: StepShape) -> bool:
        """Whether the buffers of draws hold those of ``shape``, its padding rows' too."""
        return shape.max_draws <= 1 or shape.num_rows <= self._limits.max_draft_rows

    def _shapes_to_warm(self) -> list[StepShape]:
        sizes, max_length = self._sizes, self._limits.max_length
        buckets = sorted({kv_bucket(4**n, max_length) for n in range(max_length.bit_length())})
        most_draws = self._limits.max_drafts + 1
        found: list[StepShape] = []
        for tokens, rows, is_uniform in sorted(
            self._policy.warm_up(sizes.max_tokens, sizes.max_rows), reverse=True
        ):
            for query in sorted({1, most_draws}, reverse=True):
                num_tokens = rows * query if is_uniform else tokens
                if num_tokens > sizes.max_tokens or rows > sizes.max_rows:
                    continue
                shapes = [
                    StepShape(
                        num_tokens,
                        rows,
                        query if is_uniform else tokens,
                        max_kv,
                        query,
                        is_uniform=is_uniform,
                        is_captured=True,
                        has_tree=has_tree,
                        has_adapters=has_adapters,
                    )
                    for has_adapters in (True, False)[not self._limits.num_adapters :]
                    for max_kv in buckets
                    for has_tree in _trees_of(rows, is_uniform=is_uniform)
                ]
                found += filter(self._has_room, shapes)
        return found

    def _prepare(self, shape: StepShape, rows: RowSet, bounds: Rows, *, is_same: bool) -> Prepared:
        """Have attention prepare, unless all that it knows of the step is as it was."""
        last, self._prepared = self._prepared, None  # lost should planning fail
        may_stay = is_same and shape.is_captured and not self._needs_host_lengths
        if may_stay and last is not None and last.shape is shape:
            self._prepared = last
            return last
        if shape.is_captured:
            batch, inputs = self._batch(shape)
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
        key = _graph_key(shape, self._forward.plan(batch))
        graph, pair = self._graphs.get(key), self._pairs.get(key)
        self._prepared = Prepared(shape, batch, inputs, key, graph, pair)
        return self._prepared

    def _batch(self, shape: StepShape) -> tuple[StepBatch, StepInputs]:
        """Return the batch and the rows that graphs of ``shape`` are captured with."""
        known = self._batches.get(shape)
        if known is None:
            is_bounded = shape.is_uniform
            bounds = [(shape.max_query, shape.max_kv)] * shape.num_rows if is_bounded else []
            inputs = self._upload.rows.inputs(shape.num_tokens, shape.num_rows)
            batch = self._buffers.batch(shape, self._upload.rows, inputs, bounds)
            known = self._batches[shape] = (batch, inputs)
        return known

    def _is_paired(self, shape: StepShape) -> bool:
        """Whether greedy steps of ``shape`` have both halves in one graph."""
        is_short = shape.is_uniform and shape.max_query == 1 and shape.num_rows <= PAIRED_ROWS
        return is_short and not shape.has_adapters and not self._compiles_sizes

    def _capture_forward(self, shape: StepShape, key: GraphKey, *, with_draws: bool) -> Graph:
        """Capture a forward pass, and greedy draws behind it if ``with_draws``."""
        batch, inputs = self._batch(shape)
        self._forward.plan(batch)
        if with_draws:
            self._sampler.prepare(GREEDY)
        hidden_SD = self._forward.hidden_SD[: shape.num_rows * shape.max_draws]

        def run() -> None:
            self._forward.run(batch, inputs, shape)
            if with_draws:
                self._sampler.run(hidden_SD, inputs, shape.max_draws, GREEDY)

        if with_draws:
            key_of_both = replace(key, features=key.features | {DRAWS})
            graph = self._pairs[key] = self._capture(key_of_both, run, shape)
        else:
            graph = self._graphs[key] = self._capture(key, run, shape)
        return graph

    def _capture_draws(self, shape: StepShape, kinds: frozenset[str]) -> Graph:
        num_rows, num_draws = shape.num_rows, shape.max_draws
        self._sampler.prepare(kinds)
        _, inputs = self._batch(shape)
        hidden_SD = self._forward.hidden_SD[: num_rows * num_draws]
        key = GraphKey("draws", num_rows * num_draws, num_rows, num_draws, features=kinds)

        def run() -> None:
            self._sampler.run(hidden_SD, inputs, num_draws, kinds)

        graph = self._drawings[num_rows, num_draws, kinds] = self._capture(key, run, shape)
        return graph

    def _capture(self, key: GraphKey, run: Callable[[], None], shape: StepShape) -> Graph:
        """Capture on padding rows alone, so that ``run`` may run any number of times.

        Writes to the null page and the null slot only; the staged rows and the count of steps
        are put back.
        """
        rows, slots = self._upload.rows, self._upload.table.slots
        # Not clones on the device: one that shares memory until it is written to keeps the step
        # from updating that in place, as it will later.
        words, cursor = (x.to("cpu", copy=True) for x in (rows.words, slots.cursor_1))
        query = shape.max_query if shape.is_uniform else 1
        rows.fill_null(shape.num_tokens, shape.num_rows, query)
        graph = self._device.capture(key, run)
        rows.words.copy_(words)
        slots.cursor_1.copy_(cursor)
        self._upload.arrays.cut()
        return graph


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


def _graph_key(shape: StepShape, provider: tuple[int, ...]) -> GraphKey:
    """Return the key of a forward pass of ``shape`` for which attention decided ``provider``."""
    return GraphKey(
        kind="uniform" if shape.is_uniform else "ragged",
        num_tokens=shape.num_tokens,
        num_rows=shape.num_rows,
        query=shape.max_query if shape.is_uniform else shape.max_draws,
        provider=provider,
        features=frozenset({ADAPTERS}) if shape.has_adapters else frozenset[str](),
    )


def _trees_of(num_rows: int, *, is_uniform: bool) -> tuple[bool, ...]:
    """Return whether captured steps of so many rows have a tree: always, never, or either."""
    if not is_uniform:
        return (True,)
    return (True, False) if num_rows > 1 else (False,)
