"""Runs a model step by step: pages and batches by hand, on the reference backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from headstock.checkpoint.folder import open_folder
from headstock.graph.build import Model, ModelClass, build_model
from headstock.graph.context import Context, Limits, Retention
from headstock.graph.loader import load_weights
from headstock.graph.lora import AdaptedModel, AdapterSpace, StepAdapters
from headstock.ops.attention import StepBatch, page_format_of
from headstock.ops.base import OpRegistry, Resolver
from headstock.ops.communication import Group, SingleRank
from headstock.plugins.host import HostDevice

NUM_PAGES = 64


def context(
    *,
    dtype: torch.dtype = torch.float32,
    tp: Group | None = None,
    quantization: str | None = None,
    page_size: int | None = 4,
    max_length: int = 128,
    ops: Resolver | None = None,
    adapters: AdapterSpace | None = None,
) -> Context:
    """Return what small models are built with, on the reference backend unless ``ops`` is given."""
    ops = ops or Resolver(OpRegistry(), HostDevice(num_threads=1))
    return Context(
        ops=ops,
        adapters=None if adapters is None else StepAdapters(adapters, ops),
        dtype=dtype,
        limits=Limits(max_rows=8, max_tokens=128, max_length=max_length, page_size=page_size),
        tp=tp or SingleRank(),
        quantization=quantization,
    )


def load_sequences(model_class: ModelClass, path: Path, ctx: Context | None = None) -> Sequences:
    """Build ``model_class`` for the checkpoint in the folder ``path`` and load its weights."""
    ctx = ctx or context()
    files = open_folder(path)
    with torch.no_grad():
        model = build_model(model_class, ctx, files.config)
        files.rename(model.named)
        load_weights(model, files, ctx)
    return Sequences(model, ctx)


class Sequences:
    """Token sequences with pages of their own, each computed as far as was asked.

    Args:
        model: Its weights are loaded.
        ctx: What it was built with.

    Attributes:
        adapters: Places of the sequences' LoRA adapters; those of others are 0.
    """

    def __init__(self, model: Model, ctx: Context) -> None:
        self.model, self.ctx = model, ctx
        self.adapters: dict[str, int] = {}
        self._stepped = model if ctx.adapters is None else AdaptedModel(model, ctx.adapters)
        self.tables: dict[str, list[int]] = {}
        self.lengths: dict[str, int] = {}
        self.free = list(range(NUM_PAGES - 1, 0, -1))
        self.states: dict[str, tuple[int, int]] = {}
        self.free_states = list(range(NUM_PAGES - 1, 0, -1))
        for layer in ctx.attention_layers:
            shape = layer.provider.kv_shape(NUM_PAGES)
            layer.kv = torch.full(shape, torch.nan, dtype=page_format_of(layer.provider).dtype)

    def share(self, old: str, new: str, num_tokens: int) -> None:
        """Begin ``new`` with the first pages of ``old``, and its state, as a cache hit does."""
        assert num_tokens % self.ctx.page_size == 0
        if old in self.states:
            assert self.lengths[old] == num_tokens, "its state is of other tokens"
            self.states[new] = (self.states[old][1], self.free_states.pop())
            self.states[old] = (self.states[old][1], self.free_states.pop())
        self.tables[new] = self.tables[old][: num_tokens // self.ctx.page_size]
        self.lengths[new] = num_tokens

    def drop(self, name: str) -> None:
        """Forget a sequence, as retraction does; its pages are the next to be used."""
        self.free += reversed(self.tables.pop(name))
        del self.lengths[name]
        if name in self.states:
            self.free_states.append(self.states.pop(name)[1])

    def step(self, *, wants_last: bool = False, **tokens: list[int]) -> Tensor:
        """Compute more tokens of each sequence; return the logits of all of them. [T, V]

        Args:
            wants_last: Whether each sequence's last token is all that is wanted: [R, V].
            **tokens: What comes next of each sequence, by its name.
        """
        batch = self.batch({name: len(ids) for name, ids in tokens.items()})
        for view in batch.groups:
            view.wants_last = wants_last
        ids_T = torch.tensor([token for ids in tokens.values() for token in ids])
        for layer in self.ctx.attention_layers:
            layer.provider.plan(batch.groups[layer.group])
        hidden_TD = self._stepped.forward(ids_T, batch)
        if wants_last and hidden_TD.shape[0] != len(tokens):
            hidden_TD = hidden_TD[batch.query_starts_R1[1:].long() - 1]
        return self.model.logits(hidden_TD)

    def batch(self, counts: dict[str, int]) -> StepBatch:
        """Return the step that computes so many more tokens of each sequence."""
        size = self.ctx.page_size
        rows, positions, slots, kv_lengths = [], [], [], []
        for row, (name, count) in enumerate(counts.items()):
            begin = self.lengths.get(name, 0)
            end = begin + count
            table = self.tables.setdefault(name, [])
            while len(table) * size < end:
                table.append(self.free.pop())
            self.lengths[name] = end
            kv_lengths.append(end)
            positions += range(begin, end)
            slots += [table[i // size] * size + i % size for i in range(begin, end)]
            rows += [row] * count
        width = max(len(self.tables[name]) for name in counts)
        padded = [self.tables[n] + [0] * (width - len(self.tables[n])) for n in counts]
        starts = torch.tensor([0, *counts.values()]).cumsum(0)
        queries = list(counts.values())
        batch = StepBatch(
            num_tokens=len(positions),
            num_rows=len(counts),
            max_query=max(queries),
            max_kv=max(kv_lengths),
            positions_T=torch.tensor(positions),
            query_starts_R1=starts.int(),
            kv_lengths_R=torch.tensor(kv_lengths, dtype=torch.int32),
            page_table_RP=torch.tensor(padded, dtype=torch.int32),
            write_slots_T=torch.tensor(slots),
            row_of_token_T=torch.tensor(rows, dtype=torch.int32),
            counts=torch.tensor([len(counts), len(positions), 0], dtype=torch.int32),
            tree_N4=torch.zeros((0, 4), dtype=torch.int32),
            host_rows=list(zip(queries, kv_lengths, strict=True)),
        )
        if self.adapters:
            places = [self.adapters.get(name, 0) for name in counts]
            batch.adapters_R = torch.tensor(places, dtype=torch.int32)
        states = self._take_states(counts)
        views = tuple(self.view(batch, kept, states) for kept in self.ctx.groups)
        for view in views:
            view.groups = views
        return views[0]

    def view(self, batch: StepBatch, kept: Retention, states: Tensor) -> StepBatch:
        """Return the step as a group sees it: without the pages that no query's window reaches."""
        if kept.kind == "state":
            return replace(batch, page_table_RP=states)
        table_RP = batch.page_table_RP.clone()
        if kept.kind == "window":
            for row, (count, length) in enumerate(batch.host_rows):
                gone = max(0, length - count - kept.window + 1) // self.ctx.page_size
                table_RP[row, :gone] = 0
        return replace(batch, page_table_RP=table_RP)

    def _take_states(self, counts: dict[str, int]) -> Tensor:
        """Return where rows find states and leave them; what is left once is found next time."""
        for name in counts:
            if name not in self.states:
                page = self.free_states.pop()
                self.states[name] = (page, page)
        table = [self.states[name] for name in counts]
        for name in counts:
            page = self.states[name][1]
            self.states[name] = (page, page)
        return torch.tensor(table, dtype=torch.int32)
