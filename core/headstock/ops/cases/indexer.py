"""Cases of the indexer: ragged steps, whose choices are found by scores in float64.

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
from headstock.ops.cases.attention import Rows, prefill_batch, row_mixes
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.cases.rotary import rotary_table
from headstock.ops.device import OpDevice
from headstock.ops.indexer import IndexerProvider, IndexerSpec
from headstock.ops.rotary import rotate


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexerInputs:
    """All tokens of every row, and the table.

    Attributes:
        q_rows: Of each row. [tokens, H, D]
        k_rows: [tokens, D]
        weight_rows: [tokens, H]
        cos_sin_LE: Of rotation.
    """

    q_rows: list[Tensor]
    k_rows: list[Tensor]
    weight_rows: list[Tensor]
    cos_sin_LE: Tensor


def plain_indexer_spec(dtype: torch.dtype, page_size: int) -> IndexerSpec:
    """Return an indexer of 8 heads in small sizes that differ from each other."""
    return IndexerSpec(
        num_heads=8,
        head_dim=32,
        rotary_size=16,
        is_interleaved=False,
        num_chosen=12,
        dtype=dtype,
        kv_dtype=dtype,
        page_size=page_size,
        max_length=1024,
        max_rows=32,
        max_tokens=512,
    )


def indexer_cases(bench: Bench) -> Iterator[Case]:
    """Yield steps over row mixes, page sizes, counts of chosen tokens and real models' sizes."""
    device = bench.device
    for page_size in bench.page_sizes:
        spec = plain_indexer_spec(bench.dtype, page_size)
        for label, rows, options in row_mixes(page_size):
            if "shared" not in options:
                yield indexer_case(f"{label}, pages of {page_size}", spec, rows, device, **options)
    plain = plain_indexer_spec(bench.dtype, bench.page_sizes[0])
    page = plain.page_size
    mixed: Rows = [(7, 7), (1, page + 1), (5, 3 * page), (1, 1)]
    yield indexer_case("neighbours as pairs", replace(plain, is_interleaved=True), mixed, device)
    for count in (1, 16, 64, 2048):
        yield indexer_case(f"the best {count}", replace(plain, num_chosen=count), mixed, device)
    large = replace(plain, num_heads=64, head_dim=128, rotary_size=64)
    yield indexer_case("sizes of DeepSeek V3.2", large, mixed, device)
    whole = replace(plain, num_heads=16, rotary_size=32)
    yield indexer_case("rotated as a whole", whole, mixed, device)


def indexer_case(
    label: str, spec: IndexerSpec, rows: Rows, device: OpDevice, **options: Any
) -> Case:
    """Return the case of one step; ``options`` are those of ``make_step``."""
    step = make_step(rows, spec.page_size, device.torch_device, **options)
    inputs = make_indexer_inputs(spec, rows, device.torch_device)

    def call(build: Callable[..., IndexerProvider]) -> tuple[Tensor, Tensor]:
        provider = build(spec, device)
        kv = filled_index_pages(provider, step, inputs)
        chosen_Tk = choose(provider, kv, step.batch, inputs)[: step.num_real_tokens]
        return marks(chosen_Tk, spec), provider.read(kv, torch.cat(step.slots[: len(rows)]))

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: dense_choice(spec, rows, inputs),
    )


def make_indexer_inputs(spec: IndexerSpec, rows: Rows, device: torch.device) -> IndexerInputs:
    """Draw all of it."""
    draw, dtype, heads = Draw(device, seed=1), spec.dtype, spec.num_heads
    return IndexerInputs(
        q_rows=[draw.normal(n, heads, spec.head_dim, dtype=dtype) for _, n in rows],
        k_rows=[draw.normal(n, spec.head_dim, dtype=dtype) for _, n in rows],
        weight_rows=[draw.normal(n, heads, dtype=dtype) for _, n in rows],
        cos_sin_LE=rotary_table(spec.max_length, spec.rotary_size, device),
    )


def marks(chosen_Tk: Tensor, spec: IndexerSpec) -> Tensor:
    """Return how often each position of a row was chosen. int32. [T, max_length]"""
    places = torch.where(chosen_Tk < 0, spec.max_length, chosen_Tk).long()
    shape = (len(chosen_Tk), spec.max_length + 1)
    counts = torch.zeros(shape, dtype=torch.int32, device=chosen_Tk.device)
    counts.scatter_add_(1, places, torch.ones_like(places, dtype=torch.int32))
    return counts[:, :-1]


def filled_index_pages(provider: IndexerProvider, step: Step, inputs: IndexerInputs) -> Tensor:
    """Return pages with the tokens that earlier steps would have written, else not-a-numbers."""
    shape = provider.kv_shape(step.num_pages)
    where = inputs.cos_sin_LE.device
    kv = torch.full(shape, torch.nan, dtype=page_format_of(provider).dtype, device=where)
    for row, k_LD in enumerate(inputs.k_rows):
        num_earlier = len(k_LD) - step.batch.host_rows[row][0]
        for begin in range(0, num_earlier, 256):
            end = min(begin + 256, num_earlier)
            past = prefill_batch(step, row, begin, end)
            rows = (inputs.q_rows[row], k_LD, inputs.weight_rows[row])
            q_THD, k_TD, weights_TH = (x[begin:end] for x in rows)
            provider.plan(past)
            provider.run(q_THD, k_TD, weights_TH, inputs.cos_sin_LE, kv, past)
    return kv


def choose(
    provider: IndexerProvider, kv: Tensor, batch: StepBatch, inputs: IndexerInputs
) -> Tensor:
    """Run the step as a layer does. [T, k]"""
    args: list[Tensor] = []
    for rows in (inputs.q_rows, inputs.k_rows, inputs.weight_rows):
        newest = [x[-num:] for x, (num, _) in zip(rows, batch.host_rows, strict=False)]
        num_padding = batch.num_tokens - sum(map(len, newest))
        padding = newest[0].new_full((num_padding, *newest[0].shape[1:]), torch.nan)
        args.append(torch.cat([*newest, padding]))
    provider.plan(batch)
    return provider.run(args[0], args[1], args[2], inputs.cos_sin_LE, kv, batch)


def dense_choice(spec: IndexerSpec, rows: Rows, inputs: IndexerInputs) -> tuple[Tensor, Tensor]:
    """Return what queries choose, as :func:`marks` has it, and all rotated keys. [tokens, D]"""
    chosen: list[Tensor] = []
    keys: list[Tensor] = []
    for row, (num_queries, length) in enumerate(rows):
        positions = torch.arange(length, device=inputs.cos_sin_LE.device)
        both = torch.cat((inputs.q_rows[row], inputs.k_rows[row].unsqueeze(1)), dim=1)
        both = rotate(both, positions, inputs.cos_sin_LE, is_interleaved=spec.is_interleaved)
        keys.append(both[:, -1])
        q_QHD, k_LD = both[-num_queries:, :-1].double(), both[:, -1].double()
        weights_QH = inputs.weight_rows[row][-num_queries:].double()
        scores_QL = ((q_QHD @ k_LD.T).relu() * weights_QH.unsqueeze(2)).sum(1)
        for query, scores_L in enumerate(scores_QL):
            seen = length - num_queries + query + 1
            best = scores_L[:seen].argsort(descending=True)[: spec.num_chosen]
            marked = torch.zeros(spec.max_length, dtype=torch.int32, device=best.device)
            chosen.append(marked.index_fill(0, best, 1))
    return torch.stack(chosen), torch.cat(keys)
