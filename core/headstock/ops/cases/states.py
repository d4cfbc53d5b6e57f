"""Steps of ops whose rows keep one state each: past tokens first, then the step itself.

States that no row may read hold not-a-numbers, as do padding tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch, page_format_of
from headstock.ops.cases.batches import Step, make_step

Rows = Sequence[tuple[int, int]]
"""(tokens of the step, tokens seen after it) of each row."""
MIXES: Mapping[str, tuple[Rows, dict[str, Any]]] = {
    "one token": ([(1, 1)], {}),
    "two tokens": ([(2, 2)], {}),
    "a prompt": ([(37, 37)], {}),
    "a prompt of whole chunks": ([(128, 128)], {}),
    "a prompt longer than a chunk": ([(83, 83)], {}),
    "decode": ([(1, n) for n in (2, 3, 5, 17, 70)], {}),
    "decode with padding rows": ([(1, 5), (1, 9)], {"num_padding_rows": 6}),
    "a chunk after others": ([(9, 41)], {}),
    "a chunk shorter than the convolution": ([(2, 7)], {}),
    "ragged": ([(6, 6), (1, 40), (16, 48), (1, 1), (3, 35)], {}),
    "ragged with padding rows": ([(6, 6), (1, 40), (16, 48)], {"num_padding_rows": 3}),
    "verification": ([(4, 4 + n) for n in (0, 8, 16, 50)], {}),
}
"""Rows of a step by what is tried, and options of ``make_step``."""


@dataclass(frozen=True, slots=True)
class StateInputs:
    """All tokens of every row, those of earlier steps too, and the layer's weights.

    Attributes:
        parts: For each argument of ``run`` that belongs to tokens, what each row has. [tokens, ...]
        weights: The layer's.
    """

    parts: tuple[list[Tensor], ...]
    weights: Any

    def with_one_past(self, rows: Rows) -> StateInputs:
        """Return inputs whose rows have the first row's tokens of earlier steps for theirs."""
        num_earlier = rows[0][1] - rows[0][0]
        assert all(length - num == num_earlier for num, length in rows), f"pasts differ: {rows}"
        parts = tuple(
            [torch.cat((part[0][:num_earlier], x[num_earlier:])) for x in part]
            for part in self.parts
        )
        return replace(self, parts=parts)


def run_step(
    provider: Any, step: Step, inputs: StateInputs, *, is_shared: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the step as a layer does, after the tokens of earlier steps.

    Rows leave their states on pages of their own, other than those that they find them on.

    Args:
        provider: Of an op whose ``run`` takes tokens' arguments, weights, pages and batch.
        step: Whose rows the inputs are.
        inputs: Of all tokens.
        is_shared: Whether all rows go on from the first one's state.

    Returns:
        What the real tokens have, [T, ...], the pages, and those on which rows left theirs, [R].
    """
    kv, batch = begun_states(provider, step, inputs)
    num_rows = len(inputs.parts[0])
    if is_shared:
        batch.page_table_RP[:num_rows, 0] = batch.page_table_RP[0, 0].clone()
    y = go_on(provider, kv, batch, inputs)
    return y[: step.num_real_tokens], kv, batch.page_table_RP[:num_rows, 1]


def begun_states(provider: Any, step: Step, inputs: StateInputs) -> tuple[Tensor, StepBatch]:
    """Return pages after the tokens of earlier steps, made by the provider, and the batch."""
    first = inputs.parts[0]
    device, num_rows = first[0].device, len(first)
    shape = provider.kv_shape(2 * num_rows + 1)
    kv = torch.full(shape, torch.nan, dtype=page_format_of(provider).dtype, device=device)
    num_padding = step.batch.num_rows - num_rows
    for row, tokens in enumerate(first):
        num_earlier = len(tokens) - step.batch.host_rows[row][0]
        if num_earlier:
            past = make_step([(num_earlier, num_earlier)], 16, device).batch
            past = replace(past, page_table_RP=pages_of([(row + 1, row + 1)], device), groups=())
            provider.plan(past)
            args = [part[row][:num_earlier] for part in inputs.parts]
            provider.run(*args, inputs.weights, kv, past)
    table = [(row + 1, 2 * num_rows - row) for row in range(num_rows)] + [(0, 0)] * num_padding
    return kv, replace(step.batch, page_table_RP=pages_of(table, device), groups=())


def pages_of(table: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Return the page table of (page found, page left) of each row."""
    return torch.tensor(table, dtype=torch.int32, device=device)


def go_on(provider: Any, kv: Tensor, batch: StepBatch, inputs: StateInputs) -> Tensor:
    """Run the step as a layer does. [T, ...]"""
    args: list[Tensor] = []
    for part in inputs.parts:
        newest = [x[-num:] for x, (num, _) in zip(part, batch.host_rows, strict=False)]
        num_padding = batch.num_tokens - sum(map(len, newest))
        padding = newest[0].new_full((num_padding, newest[0].shape[1]), torch.nan)
        args.append(torch.cat([*newest, padding]))
    provider.plan(batch)
    return provider.run(*args, inputs.weights, kv, batch)
