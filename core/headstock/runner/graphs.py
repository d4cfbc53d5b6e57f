"""Captured steps: found by what they bake in, captured when first met or at start-up."""

from __future__ import annotations

from headstock.ops.attention import StepBatch
from headstock.plugins.device import Device, Graph, GraphKey
from headstock.runner.batch import StepShape
from headstock.runner.inputs import StepInputs
from headstock.runner.program import StepProgram
from headstock.runner.slots import SlotTable


class StepGraphs:
    """The captured steps of one runner."""

    def __init__(
        self, device: Device, program: StepProgram, inputs: StepInputs, table: SlotTable
    ) -> None:
        self._device = device
        self._program = program
        self._inputs = inputs
        self._table = table
        self._graphs: dict[GraphKey, Graph] = {}

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._graphs)

    def run(
        self, batch: StepBatch, shape: StepShape, features: frozenset[str], key: GraphKey
    ) -> None:
        """Replay the graph of ``key``; capture it first if it is not there."""
        if key not in self._graphs:
            self.add(batch, shape, features, key)
            self._program.plan(batch)
        self._graphs[key].replay()

    def add(
        self, batch: StepBatch, shape: StepShape, features: frozenset[str], key: GraphKey
    ) -> None:
        """Capture on padding rows alone, so that it may run any number of times.

        Writes to the null page and the null slot only; the staged rows and the count of steps
        are put back.
        """

        def step() -> None:
            self._program.run(batch, shape, features)

        rows, cursor = self._inputs.words.clone(), self._table.cursor_1.clone()
        self._inputs.fill_null(shape.num_tokens, shape.num_rows)
        self._graphs[key] = self._device.capture(key, step)
        self._inputs.words.copy_(rows)
        self._table.cursor_1.copy_(cursor)


def graph_key(shape: StepShape, features: frozenset[str], provider: tuple[int, ...]) -> GraphKey:
    """Return the key of a step of ``shape`` for which attention decided ``provider``."""
    return GraphKey(
        kind="uniform" if shape.is_uniform else "ragged",
        num_tokens=shape.num_tokens,
        num_rows=shape.num_rows,
        query=shape.max_query if shape.is_uniform else 0,
        provider=provider,
        features=features,
    )
