"""A step's size, and the tensors that attention and embedding read, at fixed addresses.

Shapes: T tokens and R rows, as the step is padded; P page table entries that it looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headstock.ops.attention import StepBatch
from headstock.plugins.device import Device, GraphPolicy
from headstock.runner.inputs import StepInputs
from headstock.runner.options import PaddedSizes

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
        is_uniform: Whether every row has one token.
        is_captured: Whether it runs as a graph.
        has_tree: Whether attention is told of prefixes that rows share.
    """

    num_tokens: int
    num_rows: int
    max_query: int
    max_kv: int
    is_uniform: bool
    is_captured: bool
    has_tree: bool


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
    has_tree: bool = False,
) -> StepShape | None:
    """Return what a step is padded to, or None when it is to run eagerly.

    Every padding row has a token of its own, so a ragged step may need a larger bucket than its
    tokens alone would. Ragged steps are captured once, with a tree that may be empty.
    """
    is_uniform = num_tokens == num_rows
    bucket = policy.bucket(num_tokens, num_rows, is_uniform)
    if not is_uniform:
        bucket = _with_padding_rows(policy, num_tokens, num_rows, bucket)
    if bucket is None or bucket[0] > sizes.max_tokens or bucket[1] > sizes.max_rows:
        return None
    max_query = 1 if is_uniform else bucket[0]
    has_tree = has_tree or not is_uniform
    return StepShape(
        *bucket, max_query, max_kv, is_uniform=is_uniform, is_captured=True, has_tree=has_tree
    )


def _with_padding_rows(
    policy: GraphPolicy, num_tokens: int, num_rows: int, bucket: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Return a bucket that has a padding row, and a token for each padding row."""
    while bucket is not None:
        padding = max(bucket[1] - num_rows, 1)
        larger = policy.bucket(num_tokens + padding, num_rows + 1, is_uniform=False)
        if larger == bucket:
            break
        bucket = larger
    return bucket


class StepBuffers:
    """What :func:`headstock.ops.steps.place_step` writes; a step uses the first rows of each."""

    def __init__(self, device: Device, sizes: PaddedSizes, max_pages: int, page_size: int) -> None:
        tokens, rows = sizes.max_tokens, sizes.max_rows
        self._max_length = max_pages * page_size
        self.page_size = page_size
        self.ids_T = device.empty((tokens,), torch.int64).zero_()
        self.positions_T = device.empty((tokens,), torch.int64).zero_()
        self.write_slots_T = device.empty((tokens,), torch.int64).zero_()
        self.row_of_token_T = device.empty((tokens,), torch.int32).zero_()
        self.kv_lengths_R = device.empty((rows,), torch.int32).fill_(1)
        self.page_table_RP = device.empty((rows, max_pages), torch.int32).zero_()

    def num_pages(self, shape: StepShape) -> int:
        """Return P, at least the page table entries that rows of ``shape`` have.

        Few distinct values, since devices may compile for each.
        """
        return -(-kv_bucket(shape.max_kv, self._max_length) // self.page_size)

    def batch(
        self,
        shape: StepShape,
        inputs: StepInputs,
        host_rows: list[tuple[int, int]],
        *,
        is_scored: bool = False,
    ) -> StepBatch:
        """Return the batch of a step of ``shape``: views, nothing is copied.

        Args:
            shape: Its size.
            inputs: Its rows.
            host_rows: As in the batch.
            is_scored: Whether prompt tokens' logprobs are wanted: then of all hidden states.
        """
        tokens, rows = shape.num_tokens, shape.num_rows
        return StepBatch(
            num_tokens=tokens,
            num_rows=rows,
            max_query=shape.max_query,
            max_kv=shape.max_kv,
            positions_T=self.positions_T[:tokens],
            query_starts_R1=inputs.query_starts_R1[: rows + 1],
            kv_lengths_R=self.kv_lengths_R[:rows],
            page_table_RP=self.page_table_RP[:rows],
            write_slots_T=self.write_slots_T[:tokens],
            row_of_token_T=self.row_of_token_T[:tokens],
            counts=inputs.counts,
            tree_N4=inputs.tree_N4 if shape.has_tree else inputs.tree_N4[:0],
            host_rows=host_rows,
            wants_last=not (shape.is_uniform or is_scored),
        )
