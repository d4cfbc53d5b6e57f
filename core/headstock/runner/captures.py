"""Graphs of the halves of a step: how they are captured, and those that were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from headstock.ops.attention import StepBatch
from headstock.ops.steps import StepInputs
from headstock.plugins.device import Device, Graph, GraphKey
from headstock.runner.batch import StepBuffers, StepShape
from headstock.runner.rows import GREEDY
from headstock.runner.sampling import Sampler
from headstock.runner.step import ForwardPass
from headstock.runner.upload import Upload

ADAPTERS = "adapters"
"""Feature of a captured forward pass some of whose rows have LoRA adapters."""
DRAWS = "draws"
"""Feature of a captured forward pass with greedy draws behind it."""


class Captures:
    """Captures halves of steps, and keeps the graphs.

    Args:
        device: Where.
        forward: The first half.
        sampler: The second.
        upload: Where the rows are.
        buffers: Where the inputs go.

    Attributes:
        forwards: Forward passes.
        pairs: Forward passes with greedy draws behind them.
        drawings: Draws, by rows, draws a row and draw kinds.
    """

    def __init__(
        self,
        device: Device,
        forward: ForwardPass,
        sampler: Sampler,
        upload: Upload,
        buffers: StepBuffers,
    ) -> None:
        self._device = device
        self._forward = forward
        self._sampler = sampler
        self._upload = upload
        self._buffers = buffers
        self._batches: dict[StepShape, tuple[StepBatch, StepInputs]] = {}
        self.forwards: dict[GraphKey, Graph] = {}
        self.pairs: dict[GraphKey, Graph] = {}
        self.drawings: dict[tuple[int, int, frozenset[str]], Graph] = {}

    def batch(self, shape: StepShape) -> tuple[StepBatch, StepInputs]:
        """Return the batch and the rows that graphs of ``shape`` are captured with."""
        known = self._batches.get(shape)
        if known is None:
            is_bounded = shape.is_uniform
            bounds = [(shape.max_query, shape.max_kv)] * shape.num_rows if is_bounded else []
            inputs = self._upload.rows.inputs(shape.num_tokens, shape.num_rows)
            batch = self._buffers.batch(shape, self._upload.rows, inputs, bounds)
            known = self._batches[shape] = (batch, inputs)
        return known

    def capture_forward(self, shape: StepShape, key: GraphKey, *, with_draws: bool) -> Graph:
        """Capture a forward pass, and greedy draws behind it if ``with_draws``."""
        batch, inputs = self.batch(shape)
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
            graph = self.pairs[key] = self._capture(key_of_both, run, shape)
        else:
            graph = self.forwards[key] = self._capture(key, run, shape)
        return graph

    def capture_draws(self, shape: StepShape, kinds: frozenset[str]) -> Graph:
        """Capture the draws of ``kinds`` of steps with as many rows and draws as ``shape``."""
        num_rows, num_draws = shape.num_rows, shape.max_draws
        self._sampler.prepare(kinds)
        _, inputs = self.batch(shape)
        hidden_SD = self._forward.hidden_SD[: num_rows * num_draws]
        key = GraphKey("draws", num_rows * num_draws, num_rows, num_draws, features=kinds)

        def run() -> None:
            self._sampler.run(hidden_SD, inputs, num_draws, kinds)

        graph = self.drawings[num_rows, num_draws, kinds] = self._capture(key, run, shape)
        return graph

    def clear(self) -> None:
        """Drop all graphs: collectives that they hold keep a group from ending."""
        self.forwards.clear()
        self.pairs.clear()
        self.drawings.clear()

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


def graph_key(shape: StepShape, provider: tuple[int, ...]) -> GraphKey:
    """Return the key of a forward pass of ``shape`` for which attention decided ``provider``."""
    return GraphKey(
        kind="uniform" if shape.is_uniform else "ragged",
        num_tokens=shape.num_tokens,
        num_rows=shape.num_rows,
        query=shape.max_query if shape.is_uniform else shape.max_draws,
        provider=provider,
        features=frozenset({ADAPTERS}) if shape.has_adapters else frozenset[str](),
    )
