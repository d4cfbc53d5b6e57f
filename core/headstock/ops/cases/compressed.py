"""Cases of attention to a window and to entries: ragged steps, against float64.

Tokens and entries have tables of their own, as they have in groups of their own. Pages that nothing
was written to, and all that belongs to padding, hold not-a-numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headstock.ops.attention import page_format_of
from headstock.ops.cases.attention import Rows, prefill_batch, row_mixes
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import Step, make_step

if TYPE_CHECKING:
    from headstock.ops.compressed import CompressedProvider, CompressedSpec
    from headstock.ops.device import OpDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressedInputs:
    """Queries of a step, and what all its rows have cached.

    Attributes:
        q_THD: Padding tokens included, as not-a-numbers.
        sinks_H: float32.
        kv_rows: Of each real row, all its tokens. [kv length, D]
        entry_rows: Of each real row, all its entries. [kv length / m, D]
        chosen_Tk: Entries that are read, or None.
    """

    q_THD: Tensor
    sinks_H: Tensor
    kv_rows: list[Tensor]
    entry_rows: list[Tensor]
    chosen_Tk: Tensor | None


def plain_compressed_spec(dtype: torch.dtype, page_size: int) -> CompressedSpec:
    """Return attention of 6 heads without entries, in small sizes that differ from each other."""
    from headstock.ops.compressed import CompressedSpec

    return CompressedSpec(
        num_heads=6,
        head_dim=48,
        window=11,
        scale=48**-0.5,
        dtype=dtype,
        kv_dtype=dtype,
        page_size=page_size,
        max_length=1024,
        max_rows=32,
        max_tokens=512,
    )


def compressed_cases(bench: Bench) -> Iterator[Case]:
    """Yield row mixes, page sizes, windows, rates to either side of a page, and choices."""
    device = bench.device
    for page_size in bench.page_sizes:
        plain = plain_compressed_spec(bench.dtype, page_size)
        for label, rows, options in row_mixes(page_size):
            if "shared" in options:
                continue
            for rate in (0, *rates(page_size)):
                spec = replace(plain, rate=rate)
                what = f"{label}, pages of {page_size}, rate {rate}"
                yield compressed_case(what, spec, rows, device, **options)
    page = sixteen(bench.page_sizes)
    plain = plain_compressed_spec(bench.dtype, page)
    mixed: Rows = [(7, 7), (1, page + 1), (5, 3 * page), (1, 1), (1, 200), (9, 8 * page + 3)]
    for window in (1, page, 128):
        spec = replace(plain, window=window, rate=page)
        yield compressed_case(f"a window of {window}", spec, mixed, device)
    for heads in (1, 3, 16):
        spec = replace(plain, num_heads=heads, rate=4)
        yield compressed_case(f"{heads} heads", spec, mixed, device)
    for count in (1, 5, 512):
        spec = replace(plain, rate=4, num_chosen=count)
        yield compressed_case(f"{count} chosen", spec, mixed, device, num_padding_rows=3)
    decodes: Rows = [(1, length) for length in (1, 4, page, 4 * page + 3)]
    large = replace(plain, num_heads=4, head_dim=512, window=128, scale=512**-0.5)
    for rate, count in ((0, 0), (4, 24), (128, 0)):
        spec = replace(large, rate=rate, num_chosen=count)
        label = f"sizes of DeepSeek V4, rate {rate}"
        yield compressed_case(label, spec, mixed, device)
        yield compressed_case(f"{label}, decode", spec, decodes, device, num_padding_rows=2)


def rates(page_size: int) -> tuple[int, ...]:
    """Return rates less than a page, and more."""
    return (*(rate for rate in (2, 4) if page_size % rate == 0), page_size, 4 * page_size)


def sixteen(page_sizes: Sequence[int]) -> int:
    """Return a page size of some that a rate of 4 divides, 16 where none is."""
    return next((size for size in page_sizes if size % 4 == 0), 16)


def compressed_case(
    label: str, spec: CompressedSpec, rows: Rows, device: OpDevice, **options: Any
) -> Case:
    """Return the case of one step; ``options`` are those of ``make_step``."""
    where = device.torch_device
    step = make_step(rows, spec.page_size, where, window=spec.window, **options)
    entry_step = make_step(rows, spec.page_size, where, seed=1, **options)
    inputs = make_compressed_inputs(spec, step, where)

    def call(build: Callable[..., CompressedProvider]) -> Tensor:
        provider = build(spec, device)
        kv = filled_token_pages(provider, step, inputs)
        return attend_compressed(provider, spec, kv, (step, entry_step), inputs)

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: dense_compressed(spec, rows, inputs),
        num_real=step.num_real_tokens,
    )


def make_compressed_inputs(
    spec: CompressedSpec, step: Step, device: torch.device
) -> CompressedInputs:
    """Draw all of it."""
    draw, dtype, size = Draw(device, seed=1), spec.dtype, spec.head_dim
    q_THD = draw.normal(step.batch.num_tokens, spec.num_heads, size, dtype=dtype)
    q_THD[step.num_real_tokens :] = torch.nan
    lengths = [len(slots) for slots in step.slots]
    counts = [length // spec.rate if spec.rate else 0 for length in lengths]
    return CompressedInputs(
        q_THD=q_THD,
        sinks_H=draw.normal(spec.num_heads),
        kv_rows=[draw.normal(length, size, dtype=dtype) for length in lengths],
        entry_rows=[draw.normal(count, size, dtype=dtype) for count in counts],
        chosen_Tk=_draw_choices(spec, step, draw) if spec.num_chosen else None,
    )


def _draw_choices(spec: CompressedSpec, step: Step, draw: Draw) -> Tensor:
    """Return some entries for each query, of those that it sees; -1 where there are too few."""
    most = max(1, min(spec.num_chosen, step.batch.max_kv // spec.rate))
    chosen_Tk = torch.full((step.batch.num_tokens, most), -1, dtype=torch.int32)
    for token, position in enumerate(step.batch.positions_T.tolist()):
        count = (position + 1) // spec.rate
        order = torch.randperm(count, generator=draw.generator)[:most]
        chosen_Tk[token, : len(order)] = order
    return chosen_Tk.to(draw.device)


def entry_slots(slots_L: Tensor, rate: int, page_size: int) -> Tensor:
    """Return where a row's entries lie, in entries of a buffer, of the slots of its tokens."""
    from headstock.ops.compressed import entries_a_page

    last = slots_L[rate - 1 :: rate]
    return last // page_size * entries_a_page(page_size, rate) + last % page_size // rate


def entry_pages(step: Step, rows: list[Tensor], rate: int, page_size: int) -> Tensor:
    """Return pages that hold the entries ``rows`` of a step's rows, else not-a-numbers."""
    from headstock.ops.compressed import entries_a_page

    shape = (step.num_pages, entries_a_page(page_size, rate), rows[0].shape[1])
    pages = torch.full(shape, torch.nan, dtype=rows[0].dtype, device=rows[0].device)
    for slots_L, entries_ND in zip(step.slots, rows, strict=True):
        slots_N = entry_slots(slots_L, rate, page_size)[: len(entries_ND)]
        pages.view(-1, shape[2])[slots_N] = entries_ND
    return pages


def filled_token_pages(
    provider: CompressedProvider, step: Step, inputs: CompressedInputs
) -> Tensor:
    """Return pages with the tokens that earlier steps would have written, else not-a-numbers."""
    shape = provider.kv_shape(step.num_pages)
    kv = torch.empty(shape, dtype=page_format_of(provider).dtype, device=inputs.q_THD.device)
    kv.fill_(torch.nan)
    for row, kv_LD in enumerate(inputs.kv_rows):
        num_earlier = len(kv_LD) - step.batch.host_rows[row][0]
        for begin in range(0, num_earlier, 256):
            end = min(begin + 256, num_earlier)
            past = prefill_batch(step, row, begin, end)
            provider.plan(past)
            provider.write(kv_LD[begin:end], kv, past)
    return kv


def attend_compressed(
    provider: CompressedProvider,
    spec: CompressedSpec,
    kv: Tensor,
    steps: tuple[Step, Step],
    inputs: CompressedInputs,
) -> Tensor:
    """Run a step as a layer does: write its newest tokens, then attend. [T, H, D]

    Args:
        provider: Of ``spec``.
        spec: What is computed.
        kv: Pages of tokens, earlier ones filled.
        steps: The step, as the tokens' and as the entries' group sees it.
        inputs: All else.
    """
    from headstock.ops.compressed import EntryPages

    step, entry_step = steps
    host_rows = step.batch.host_rows[: step.num_real_rows]
    newest = [kv_LD[-num:] for kv_LD, (num, _) in zip(inputs.kv_rows, host_rows, strict=True)]
    num_padding = step.batch.num_tokens - step.num_real_tokens
    padding = newest[0].new_full((num_padding, newest[0].shape[1]), torch.nan)
    provider.plan(step.batch)
    provider.write(torch.cat([*newest, padding]), kv, step.batch)
    entries = None
    if spec.rate:
        pages = entry_pages(entry_step, inputs.entry_rows, spec.rate, spec.page_size)
        entries = EntryPages(pages, entry_step.batch)
    return provider.run(
        inputs.q_THD,
        inputs.sinks_H,
        kv,
        step.batch,
        entries=entries,
        chosen_Tk=inputs.chosen_Tk,
    )


def dense_compressed(spec: CompressedSpec, rows: Rows, inputs: CompressedInputs) -> Tensor:
    """Attend query by query in float64. [real tokens, H, D]"""
    outs: list[Tensor] = []
    sinks_H1 = inputs.sinks_H.double().unsqueeze(1)
    pairs = zip(inputs.kv_rows, inputs.entry_rows, strict=True)
    for (num_queries, length), (kv_LD, entries_ND) in zip(rows, pairs, strict=True):
        for position in range(length - num_queries, length):
            seen_ND = entries_ND[: (position + 1) // spec.rate if spec.rate else 0]
            if inputs.chosen_Tk is not None:
                chosen = inputs.chosen_Tk[len(outs)]
                seen_ND = entries_ND[chosen[chosen >= 0].long()]
            near_KD = kv_LD[max(0, position - spec.window + 1) : position + 1]
            k_KD = torch.cat((near_KD, seen_ND)).double()
            scores_HK = inputs.q_THD[len(outs)].double() @ k_KD.T * spec.scale
            probs_HK = torch.cat((scores_HK, sinks_H1), dim=1).softmax(dim=1)[:, :-1]
            outs.append(probs_HK @ k_KD)
    return torch.stack(outs)
