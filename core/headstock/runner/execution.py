"""How a step is run: at what size, eagerly or as a graph, prepared anew or as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.plugins.device import Device, GraphKey
from headstock.runner.batch import StepBuffers, StepShape, captured_shape, kv_bucket
from headstock.runner.graphs import StepGraphs, graph_key
from headstock.runner.options import PaddedSizes
from headstock.runner.program import StepProgram
from headstock.runner.rows import DRAW, SAMPLE, RowSet
from headstock.runner.sampler import Sampler
from headstock.runner.staging import Staging
from headstock.wire.steps import Rows

FEW_ROWS = 8
"""Rows up to which steps that draw are captured before serving, too."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A step that attention has prepared for.

    Attributes:
        shape: Its size.
        batch: Its tensors.
        provider_key: What attention decided that a graph bakes in.
    """

    shape: StepShape
    batch: StepBatch
    provider_key: tuple[int, ...]


class Execution:
    """Chooses the size of steps, prepares attention for them, and runs them.

    Args:
        device: Where.
        program: What a step is.
        staging: Where its rows are.
        buffers: Where its inputs go.
        sampler: Makes the buffers that features need.
        max_length: Longest request. Tokens.
        sizes: Of the buffers.
        captures: Whether steps become graphs where the device's policy says so.
    """

    def __init__(
        self,
        device: Device,
        program: StepProgram,
        staging: Staging,
        buffers: StepBuffers,
        sampler: Sampler,
        *,
        max_length: int,
        sizes: PaddedSizes,
        captures: bool,
    ) -> None:
        self._policy = device.graph_policy
        self._program = program
        self._inputs = staging.inputs
        self._buffers = buffers
        self._sampler = sampler
        self._max_length = max_length
        self._sizes = sizes
        self._captures = captures
        self._batches: dict[StepShape, StepBatch] = {}
        self._prepared: Prepared | None = None
        self.graphs = StepGraphs(device, program, staging.inputs, staging.table)

    def shape(self, rows: RowSet, max_kv: int) -> StepShape:
        """Return the size that a step of ``rows``, up to ``max_kv`` tokens long, runs at."""
        queries = rows.inputs.queries
        num_tokens, num_rows = len(rows.inputs.host_ids), len(queries)
        has_tree = bool(rows.inputs.tree.row_begin)
        if self._captures and not rows.scored:
            bucket = kv_bucket(max_kv, self._max_length)
            shape = captured_shape(
                self._policy, self._sizes, num_tokens, num_rows, bucket, has_tree=has_tree
            )
            if shape is not None:
                return shape
        return StepShape(
            num_tokens,
            num_rows,
            max(queries),
            max_kv,
            is_uniform=rows.is_uniform,
            is_captured=False,
            has_tree=has_tree,
        )

    def run(
        self, shape: StepShape, features: frozenset[str], rows: Rows, *, is_same: bool
    ) -> Tensor | None:
        """Queue a step whose rows are on the device.

        Args:
            shape: Its size.
            features: What sampling does.
            rows: Its rows; attention is told their upper bounds if it runs eagerly.
            is_same: Whether they are the last step's, one token further.

        Returns:
            The last hidden states, of a step that ran eagerly. [T, D]
        """
        self._sampler.prepare(features)
        prepared = self._prepare(shape, rows, is_same=is_same)
        if not shape.is_captured:
            return self._program.run(prepared.batch, shape, features)
        key = graph_key(shape, features, prepared.provider_key)
        self.graphs.run(prepared.batch, shape, features, key)
        return None

    def warm_up(self, progress: Callable[[int, int], None]) -> None:
        """Capture the steps that the device's policy names, largest first.

        Greedy ones, and of those with few rows, where a late capture would be felt most, ones
        that draw. All others are captured on first use.

        Args:
            progress: Called with (captured, to capture) after each.
        """
        shapes = self._shapes_to_warm() if self._captures else []
        wanted = [(shape, frozenset({SAMPLE})) for shape in shapes]
        wanted += [
            (shape, frozenset({SAMPLE, DRAW}))
            for shape in shapes
            if shape.is_uniform and shape.num_rows <= FEW_ROWS and not shape.has_tree
        ]
        self._prepared = None
        by_key: dict[GraphKey, tuple[StepShape, frozenset[str]]] = {}
        for shape, features in wanted:  # attention that ignores trees needs one graph for both
            plan = self._program.plan(self._batch(shape))
            by_key.setdefault(graph_key(shape, features, plan), (shape, features))
        for count, (key, (shape, features)) in enumerate(by_key.items(), 1):
            batch = self._batch(shape)
            self._program.plan(batch)
            self.graphs.add(batch, shape, features, key)
            progress(count, len(by_key))

    def _shapes_to_warm(self) -> list[StepShape]:
        max_kv = kv_bucket(1, self._max_length)
        sizes = self._policy.warm_up(self._sizes.max_tokens, self._sizes.max_rows)
        return [
            StepShape(
                tokens,
                rows,
                1 if is_uniform else tokens,
                max_kv,
                is_uniform=is_uniform,
                is_captured=True,
                has_tree=has_tree,
            )
            for tokens, rows, is_uniform in sorted(sizes, reverse=True)
            if tokens <= self._sizes.max_tokens and rows <= self._sizes.max_rows
            for has_tree in _trees_of(rows, is_uniform=is_uniform)
        ]

    def _prepare(self, shape: StepShape, rows: Rows, *, is_same: bool) -> Prepared:
        """Let attention prepare, unless all that it knows of the step is as it was."""
        last, self._prepared = self._prepared, None  # lost should planning fail
        if is_same and shape.is_captured and last is not None and last.shape == shape:
            self._prepared = last
            return last
        if shape.is_captured:
            batch = self._batch(shape)
        else:
            host_rows = list(zip(rows.query_max, rows.kv_max, strict=True))
            batch = self._buffers.batch(shape, self._inputs, host_rows, is_scored=any(rows.score))
        self._prepared = Prepared(shape, batch, self._program.plan(batch))
        return self._prepared

    def _batch(self, shape: StepShape) -> StepBatch:
        """Return the batch that graphs of ``shape`` are captured with."""
        batch = self._batches.get(shape)
        if batch is None:
            bounds = [(1, shape.max_kv)] * shape.num_rows if shape.is_uniform else []
            batch = self._buffers.batch(shape, self._inputs, bounds)
            self._batches[shape] = batch
        return batch


def _trees_of(num_rows: int, *, is_uniform: bool) -> tuple[bool, ...]:
    """Return whether captured steps of so many rows have a tree: always, never, or either."""
    if not is_uniform:
        return (True,)
    return (True, False) if num_rows > 1 else (False,)
