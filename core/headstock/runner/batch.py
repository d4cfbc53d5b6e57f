"""A step's size, and the tensors that attention and embedding read, at fixed addresses.

Shapes: T tokens and R rows, as the step is padded; P page table entries that it looks at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch
from headstock.ops.steps import StepInputs
from headstock.plugins.device import Device, GraphPolicy
from headstock.runner.media import MediaRows
from headstock.runner.options import PaddedSizes, ragged_bucket
from headstock.runner.rows import RowSet
from headstock.runner.slots import table_width
from headstock.runner.upload import RowBuffer
from headstock.wire.steps import PageGroup, RunnerLimits

FIRST_KV_BUCKET = 1 << 15
"""Captured steps know their longest row's length by powers of 4 from here. Tokens."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """The size that a step runs at.

    Attributes:
        num_tokens: T.
        num_rows: R.
        max_query: Upper bound of a row's query tokens.
        max_kv: Upper bound of a row's length.
        max_draws: J: the most positions that a row draws from; 0: no row draws.
        is_uniform: Whether every row has ``max_query`` tokens and draws from each of them.
        is_captured: Whether it runs as a graph.
        has_tree: Whether attention is given prefixes that rows share.
        has_media: Whether some tokens have features of images; such steps run eagerly.
        has_adapters: Whether some row has a LoRA adapter: a step without any does nothing for them.
    """

    num_tokens: int
    num_rows: int
    max_query: int
    max_kv: int
    max_draws: int
    is_uniform: bool
    is_captured: bool
    has_tree: bool
    has_media: bool = False
    has_adapters: bool = False


def kv_bucket(max_kv: int, max_length: int) -> int:
    """Return the bucket that captured steps with rows up to ``max_kv`` long fall into. Tokens."""
    bucket = FIRST_KV_BUCKET
    while bucket < max_kv:
        bucket *= 4
    return min(bucket, max_length)


def captured_shape(
    policy: GraphPolicy,
    sizes: PaddedSizes,
    num_tokens: int,
    num_rows: int,
    max_kv: int,
    *,
    max_draws: int = 1,
    is_uniform: bool | None = None,
    has_tree: bool = False,
    has_adapters: bool = False,
) -> StepShape | None:
    """Return what a step is padded to, or None when it is to run eagerly.

    Every padding row has a token of its own, so a ragged step may need a larger bucket than its
    tokens alone would. Ragged steps are captured once, with a tree that may be empty.
    """
    if is_uniform is None:
        is_uniform = num_tokens == num_rows
    query = num_tokens // num_rows if is_uniform else 0
    if is_uniform:
        bucket = policy.bucket(num_rows, num_rows, True)
        bucket = None if bucket is None else (bucket[1] * query, bucket[1])
    else:
        bucket = ragged_bucket(policy, num_tokens, num_rows)
    if bucket is None or bucket[0] > sizes.max_tokens or bucket[1] > sizes.max_rows:
        return None
    return StepShape(
        *bucket,
        max_query=query or bucket[0],
        max_kv=max_kv,
        max_draws=query or max_draws,
        is_uniform=is_uniform,
        is_captured=True,
        has_tree=has_tree or not is_uniform,
        has_adapters=has_adapters,
    )


class _GroupBuffers:
    """What a step's view of one page group lies in."""

    def __init__(
        self, device: Device, sizes: PaddedSizes, group: PageGroup, max_length: int
    ) -> None:
        self._page_tokens = 0 if group.kind == "state" else group.page_tokens
        self._max_length = max_length
        width = table_width(group, max_length)
        self.page_table_RP = device.empty((sizes.max_rows, width), torch.int32).zero_()
        self.write_slots_T = device.empty((sizes.max_tokens,), torch.int64).zero_()

    def views(self, shape: StepShape) -> tuple[Tensor, Tensor]:
        """Return the page table and the write slots of a step of ``shape``.

        The table has few distinct widths, since devices may compile for each.
        """
        table_RP = self.page_table_RP[: shape.num_rows]
        if self._page_tokens:
            num_pages = -(-kv_bucket(shape.max_kv, self._max_length) // self._page_tokens)
            table_RP = table_RP[:, :num_pages]
        return table_RP, self.write_slots_T[: shape.num_tokens]


class StepBuffers:
    """What :func:`headstock.ops.steps.place_step` writes; a step uses the first rows of each.

    Attributes:
        ids_T: What is embedded.
    """

    def __init__(
        self,
        device: Device,
        sizes: PaddedSizes,
        limits: RunnerLimits,
        media: MediaRows | None = None,
    ) -> None:
        self._media = media
        tokens, rows = sizes.max_tokens, sizes.max_rows
        self.ids_T = device.empty((tokens,), torch.int64).zero_()
        self._positions_T = device.empty((tokens,), torch.int64).zero_()
        self._row_of_token_T = device.empty((tokens,), torch.int32).zero_()
        self._kv_lengths_R = device.empty((rows,), torch.int32).fill_(1)
        self._adapters_R: Tensor | None = None
        if limits.num_adapters:
            self._adapters_R = device.empty((rows,), torch.int32).zero_()
        self._groups = [
            _GroupBuffers(device, sizes, group, limits.max_length) for group in limits.groups
        ]

    def batch(
        self,
        shape: StepShape,
        rows: RowBuffer,
        inputs: StepInputs,
        host_rows: list[tuple[int, int]],
        *,
        is_whole: bool = False,
    ) -> StepBatch:
        """Return the batch of a step of ``shape``: views, nothing is copied.

        Args:
            shape: Its size.
            rows: Where its rows lie.
            inputs: Its rows.
            host_rows: As in the batch.
            is_whole: Whether the hidden states of all tokens are wanted.
        """
        tokens, num_rows = shape.num_tokens, shape.num_rows
        adapters_R = self._adapters_R if shape.has_adapters else None
        views: list[StepBatch] = []
        shifts_AT = media = None
        if self._media is not None:
            shifts_AT, media = self._media.views(tokens, has_media=shape.has_media)
        for group in self._groups:
            page_table_RP, write_slots_T = group.views(shape)
            view = StepBatch(
                num_tokens=tokens,
                num_rows=num_rows,
                max_query=shape.max_query,
                max_kv=shape.max_kv,
                positions_T=self._positions_T[:tokens],
                query_starts_R1=inputs.query_starts_R1,
                kv_lengths_R=self._kv_lengths_R[:num_rows],
                page_table_RP=page_table_RP,
                write_slots_T=write_slots_T,
                row_of_token_T=self._row_of_token_T[:tokens],
                counts=rows.counts,
                tree_N4=rows.tree_N4 if shape.has_tree else rows.tree_N4[:0],
                host_rows=host_rows,
                wants_last=not (shape.is_uniform or shape.max_draws > 1 or is_whole),
                adapters_R=None if adapters_R is None else adapters_R[:num_rows],
                shifts_AT=shifts_AT,
                media=media,
            )
            views.append(view)
        for view in views:
            view.groups = tuple(views)
        return views[0]


class StepShapes:
    """Chooses the size of each step.

    Args:
        device: Its policy names the sizes that are captured.
        limits: Of the runner.
        sizes: Of the buffers.
        captures: Whether steps become graphs where the device's policy says so.
    """

    def __init__(
        self, device: Device, *, limits: RunnerLimits, sizes: PaddedSizes, captures: bool
    ) -> None:
        self._policy = device.graph_policy
        self._compiles_sizes = device.facts.compiles_sizes
        self._limits = limits
        self._sizes = sizes
        self._captures = captures
        self._sized: tuple[RowSet, StepShape] | None = None

    def of(self, rows: RowSet, max_kv: int) -> StepShape:
        """Return the size that a step of ``rows``, up to ``max_kv`` tokens long, runs at.

        The last step's rows have its size until they outgrow its bucket.
        """
        if self._sized is not None:
            last, shape = self._sized
            if last is rows and max_kv <= shape.max_kv:
                return shape
        shape = self._choose(rows, max_kv)
        self._sized = (rows, shape) if shape.is_captured else None
        return shape

    def _choose(self, rows: RowSet, max_kv: int) -> StepShape:
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

    def to_warm(self) -> list[StepShape]:
        """Return the sizes that the device's policy captures before serving, largest first."""
        if not self._captures:
            return []
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

    def forget(self) -> None:
        """Choose anew for the next step, whatever its rows."""
        self._sized = None

    def _has_room(self, shape: StepShape) -> bool:
        """Whether the buffers of draws hold those of ``shape``, its padding rows' too."""
        return shape.max_draws <= 1 or shape.num_rows <= self._limits.max_draft_rows


def _trees_of(num_rows: int, *, is_uniform: bool) -> tuple[bool, ...]:
    """Return whether captured steps of so many rows have a tree: always, never, or either."""
    if not is_uniform:
        return (True,)
    return (True, False) if num_rows > 1 else (False,)
