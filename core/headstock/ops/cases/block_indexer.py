"""Cases of the indexer of blocks: ragged steps, whose choices are found by scores in float64.

Pages that no token was written to, and all that belongs to padding, hold not-a-numbers: a provider
that reads past a row's length shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.attention import StepBatch, page_format_of
from headstock.ops.block_indexer import BlockIndexerProvider, BlockIndexerSpec
from headstock.ops.cases.attention import Rows, prefill_batch, row_mixes
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.cases.rotary import rotary_table
from headstock.ops.device import OpDevice
from headstock.ops.rotary import rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInputs:
    """All tokens of every row, and the table.

    Attributes:
        q_rows: Of each row. [tokens, H, D]
        k_rows: [tokens, D]
        cos_sin_LE: Of rotation.
    """

    q_rows: list[Tensor]
    k_rows: list[Tensor]
    cos_sin_LE: Tensor


def plain_block_spec(dtype: torch.dtype, page_size: int) -> BlockIndexerSpec:
    """Return an indexer of 2 heads in small sizes that differ from each other."""
    return BlockIndexerSpec(
        num_heads=2,
        head_dim=32,
        rotary_size=16,
        block_size=8,
        num_chosen=3,
        num_local=1,
        dtype=dtype,
        kv_dtype=dtype,
        page_size=page_size,
        max_length=1024,
        max_rows=32,
        max_tokens=512,
    )


def block_indexer_cases(bench: Bench) -> Iterator[Case]:
    """Yield steps over row mixes, page sizes, sizes of blocks and counts of chosen ones."""
    device = bench.device
    for page_size in bench.page_sizes:
        spec = plain_block_spec(bench.dtype, page_size)
        for label, rows, options in row_mixes(page_size):
            if "shared" not in options:
                yield block_case(f"{label}, pages of {page_size}", spec, rows, device, **options)
    plain = plain_block_spec(bench.dtype, bench.page_sizes[0])
    page = plain.page_size
    mixed: Rows = [(7, 7), (1, page + 1), (5, 3 * page), (1, 1), (1, 300)]
    for size in (1, 5, 2 * page, 128):
        yield block_case(f"blocks of {size}", replace(plain, block_size=size), mixed, device)
    for chosen, local in ((1, 1), (4, 0), (4, 2), (16, 1), (3, 3)):
        spec = replace(plain, num_chosen=chosen, num_local=local)
        yield block_case(f"{chosen} chosen, {local} of them the last", spec, mixed, device)
    large = replace(plain, num_heads=4, head_dim=128, rotary_size=64, block_size=128, num_chosen=16)
    yield block_case("sizes of MiniMax M3", large, mixed, device)
    one = replace(plain, num_heads=1, rotary_size=32)
    yield block_case("one head, rotated as a whole", one, mixed, device)


def block_case(
    label: str, spec: BlockIndexerSpec, rows: Rows, device: OpDevice, **options: Any
) -> Case:
    """Return the case of one step; ``options`` are those of ``make_step``."""
    step = make_step(rows, spec.page_size, device.torch_device, **options)
    draw, heads = Draw(device.torch_device, seed=1), (spec.num_heads, spec.head_dim)
    inputs = BlockInputs(
        q_rows=[draw.normal(n, *heads, dtype=spec.dtype) for _, n in rows],
        k_rows=[draw.normal(n, spec.head_dim, dtype=spec.dtype) for _, n in rows],
        cos_sin_LE=rotary_table(spec.max_length, spec.rotary_size, device.torch_device),
    )

    def call(build: Callable[..., BlockIndexerProvider]) -> tuple[Tensor, Tensor]:
        provider = build(spec, device)
        kv = _filled_pages(provider, step, inputs)
        chosen_THk = _choose(provider, kv, step.batch, inputs)[: step.num_real_tokens]
        return _marks(chosen_THk, spec), provider.read(kv, torch.cat(step.slots[: len(rows)]))

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: _dense_choice(spec, rows, inputs),
    )


def _marks(chosen_THk: Tensor, spec: BlockIndexerSpec) -> Tensor:
    """Return how often each block of a row was chosen. int32. [T, H, most blocks]"""
    most = -(-spec.max_length // spec.block_size)
    places = torch.where(chosen_THk < 0, most, chosen_THk).long()
    shape = (*chosen_THk.shape[:2], most + 1)
    counts = torch.zeros(shape, dtype=torch.int32, device=chosen_THk.device)
    counts.scatter_add_(2, places, torch.ones_like(places, dtype=torch.int32))
    return counts[..., :-1]


def _filled_pages(provider: BlockIndexerProvider, step: Step, inputs: BlockInputs) -> Tensor:
    """Return pages with the tokens that earlier steps would have written, else not-a-numbers."""
    shape = provider.kv_shape(step.num_pages)
    where = inputs.cos_sin_LE.device
    kv = torch.full(shape, torch.nan, dtype=page_format_of(provider).dtype, device=where)
    for row, k_LD in enumerate(inputs.k_rows):
        num_earlier = len(k_LD) - step.batch.host_rows[row][0]
        for begin in range(0, num_earlier, 256):
            end = min(begin + 256, num_earlier)
            past = prefill_batch(step, row, begin, end)
            provider.plan(past)
            q_THD, k_TD = inputs.q_rows[row][begin:end], k_LD[begin:end]
            provider.run(q_THD, k_TD, inputs.cos_sin_LE, kv, past)
    return kv


def _choose(
    provider: BlockIndexerProvider, kv: Tensor, batch: StepBatch, inputs: BlockInputs
) -> Tensor:
    """Run the step as a layer does. [T, H, k]"""
    args: list[Tensor] = []
    for rows in (inputs.q_rows, inputs.k_rows):
        newest = [x[-num:] for x, (num, _) in zip(rows, batch.host_rows, strict=False)]
        num_padding = batch.num_tokens - sum(map(len, newest))
        padding = newest[0].new_full((num_padding, *newest[0].shape[1:]), torch.nan)
        args.append(torch.cat([*newest, padding]))
    provider.plan(batch)
    return provider.run(args[0], args[1], inputs.cos_sin_LE, kv, batch)


def _dense_choice(spec: BlockIndexerSpec, rows: Rows, inputs: BlockInputs) -> tuple[Tensor, Tensor]:
    """Return what queries choose, as :func:`_marks` has it, and all rotated keys. [tokens, D]"""
    most = -(-spec.max_length // spec.block_size)
    chosen: list[Tensor] = []
    keys: list[Tensor] = []
    for row, (num_queries, length) in enumerate(rows):
        positions = torch.arange(length, device=inputs.cos_sin_LE.device)
        both = torch.cat((inputs.q_rows[row], inputs.k_rows[row].unsqueeze(1)), dim=1)
        both = rotate(both, positions, inputs.cos_sin_LE, is_interleaved=False)
        keys.append(both[:, -1])
        scores_QHL = both[-num_queries:, :-1].double() @ both[:, -1].double().T
        for query, scores_HL in enumerate(scores_QHL):
            seen = length - num_queries + query + 1
            blocks = scores_HL[:, :seen].split(spec.block_size, dim=1)
            best_HB = torch.stack([part.amax(1) for part in blocks], dim=1)
            best_HB[:, max(0, len(blocks) - spec.num_local) :] = torch.inf
            order_HB = best_HB.argsort(dim=1, descending=True, stable=True)
            marked = torch.zeros(spec.num_heads, most, dtype=torch.int32, device=positions.device)
            chosen.append(marked.scatter(1, order_HB[:, : spec.num_chosen], 1))
    return torch.stack(chosen), torch.cat(keys)
