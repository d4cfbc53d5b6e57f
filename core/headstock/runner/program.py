"""One step on the device, from the slot table back to the slot table; what a graph captures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from headstock.ops.attention import CacheProvider, StepBatch
from headstock.runner.batch import StepBuffers, StepShape
from headstock.runner.rows import SAMPLE
from headstock.runner.sampler import Sampler
from headstock.runner.staging import Staging
from headstock.runner.step_ops import StepOps

GREEDY = frozenset({SAMPLE})
"""Features of steps that only need to know which logit is the highest."""


class StepModel(Protocol):
    """What the runner calls of a model."""

    def forward(self, ids_T: Tensor, batch: StepBatch) -> Tensor:
        """Return the last hidden states. [T, D]"""
        ...

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Return logits of every id, on every rank. float32. [S, V]"""
        ...

    def scores(self, hidden_SD: Tensor) -> Tensor:
        """Return them in whatever dtype they are computed: enough to find the highest. [S, V]"""
        ...


class CachedLayer(Protocol):
    """A layer with a cache: who computes it, and its pages, which the runner assigns."""

    kv: Tensor

    @property
    def provider(self) -> CacheProvider:
        """Shared by the layers of one spec."""
        ...


class StepProgram:
    """The calls of a step, in order. Reads nothing of the host but what it is given.

    So that a graph captured from :meth:`run` is right for any later step of the same shape and
    features, whatever lies in the buffers then.
    """

    def __init__(
        self,
        model: StepModel,
        layers: Sequence[CachedLayer],
        ops: StepOps,
        staging: Staging,
        buffers: StepBuffers,
        sampler: Sampler,
    ) -> None:
        self._model = model
        self._ops = ops
        self._table = staging.table
        self._inputs = staging.inputs
        self._buffers = buffers
        self._sampler = sampler
        by_id = {id(layer.provider): layer.provider for layer in layers}
        self._providers = list(by_id.values())

    def plan(self, batch: StepBatch) -> tuple[int, ...]:
        """Let attention prepare for ``batch``, and return what it decided that graphs bake in."""
        key: tuple[int, ...] = (batch.max_kv,)
        for provider in self._providers:
            provider.plan(batch)
            key += provider.graph_key
        return key

    def run(self, batch: StepBatch, shape: StepShape, features: frozenset[str]) -> Tensor:
        """Queue the step and return its last hidden states, which a graph overwrites.

        Returns:
            [T, D]; or [R, D], of the rows' last tokens, where the batch wants no more.
        """
        ops, table, inputs = self._ops, self._table, self._inputs
        slots_R = inputs.slots_R[: shape.num_rows]
        self._place(slots_R, batch, shape)
        hidden_TD = self._model.forward(self._buffers.ids_T[: shape.num_tokens], batch)
        ops.advance_lengths(slots_R, batch.kv_lengths_R, table.done_S, table.lengths_S)
        if SAMPLE in features:
            last_RD = hidden_TD
            if hidden_TD.shape[0] != shape.num_rows:
                last_RD = ops.last_of_rows(hidden_TD, batch.query_starts_R1)
            sample_slots_R = inputs.sample_slots_R[: shape.num_rows]
            is_narrow = ops.takes_narrow and features == GREEDY
            logits = self._model.scores if is_narrow else self._model.logits
            self._sampler.run(logits(last_RD), sample_slots_R, features)
        return hidden_TD

    def _place(self, slots_R: Tensor, batch: StepBatch, shape: StepShape) -> None:
        table, buffers = self._table, self._buffers
        self._ops.place_step(
            slots_R,
            batch.query_starts_R1,
            self._inputs.host_ids_T[: shape.num_tokens],
            table.lengths_S,
            table.done_S,
            table.last_ids_S,
            table.page_table_SP,
            buffers.ids_T[: shape.num_tokens],
            batch.positions_T,
            batch.row_of_token_T,
            batch.write_slots_T,
            batch.kv_lengths_R,
            batch.page_table_RP[:, : buffers.num_pages(shape)],
            page_size=buffers.page_size,
        )
