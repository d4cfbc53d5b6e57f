"""Cases of the op ``attention``: ragged steps, checked against dense attention in float64.

Pages that no token was written to, and all that belongs to padding, hold not-a-numbers: a provider
that reads past a row's length shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.attention import (
    BIDIRECTIONAL,
    BOTH_SIDES,
    CHOSEN_BLOCKS,
    CHUNKED,
    AttentionProvider,
    AttentionSpec,
    StepBatch,
    page_format_of,
)
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.device import OpDevice
from headstock.ops.narrow_pages import NARROW

Rows = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionInputs:
    """Queries of a step, and keys and values of all its rows' tokens.

    Attributes:
        q_THD: Padding tokens included, as not-a-numbers.
        k_rows: Of each real row, all its tokens. [kv length, K, D]
        v_rows: Likewise.
        sinks_H: Or None.
        chosen_TKk: Blocks that are read, or None.
    """

    q_THD: Tensor
    k_rows: list[Tensor]
    v_rows: list[Tensor]
    sinks_H: Tensor | None
    chosen_TKk: Tensor | None = None


def attention_cases(bench: Bench) -> Iterator[Case]:
    """Yield steps over row mixes, page sizes, head ratios, head sizes and features."""
    device = bench.device
    plain = plain_spec(bench.dtype, bench.page_sizes[0])
    for page_size in bench.page_sizes:
        spec = replace(plain, page_size=page_size)
        for label, rows, options in row_mixes(page_size):
            if bench.has_exact_rows and "bound_slack" in options:
                continue
            yield attention_case(f"{label}, pages of {page_size}", spec, rows, device, **options)
    page = plain.page_size
    mixed: Rows = [(7, 7), (1, page + 1), (5, 3 * page), (1, 1)]
    for heads, kv_heads in ((1, 1), (4, 4), (9, 3), (8, 1), (5, 1)):
        spec = replace(plain, num_heads=heads, num_kv_heads=kv_heads)
        yield attention_case(f"{heads} heads, {kv_heads} kv", spec, mixed, device)
    for head_dim in (32, 80, 96, 128):
        spec = replace(plain, head_dim=head_dim, scale=head_dim**-0.5)
        yield attention_case(f"head size {head_dim}", spec, mixed, device)
    for label, spec, rows in _far_steps(plain):
        yield attention_case(label, spec, rows, device)
    for label, spec in _feature_specs(plain):
        yield attention_case(f"{label}, mixed", spec, mixed, device)
        decodes = [(1, length) for length in (1, 4, page, 4 * page + 3)]
        yield attention_case(f"{label}, decode", spec, decodes, device, num_padding_rows=2)
    for label, spec, rows, options in _window_steps(plain):
        options = {"window": spec.window, **options}
        yield attention_case(label, spec, rows, device, **options)
    for label, spec, rows, options in _block_steps(plain):
        yield attention_case(label, spec, rows, device, **options)
    for label, spec, rows, options in _whole_steps(plain):
        yield attention_case(label, spec, rows, device, **options)
    for label, spec, rows, options in _shared_steps(plain):
        yield attention_case(f"{label}, shared prefix", spec, rows, device, **options)


def attention_case(
    label: str, spec: AttentionSpec, rows: Rows, device: OpDevice, **options: Any
) -> Case:
    """Return the case of one step; ``options`` are those of ``make_step``."""
    step = make_step(rows, spec.page_size, device.torch_device, **options)
    inputs = make_inputs(spec, step, device.torch_device, shared=options.get("shared", ()))

    def call(build: Callable[..., AttentionProvider]) -> Tensor:
        provider = build(spec, device)
        kv = filled_pages(provider, step, inputs, spec.max_tokens)
        return attend(provider, kv, step, inputs)

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: dense_attention(spec, rows, inputs),
        num_real=step.num_real_tokens,
    )


def make_inputs(
    spec: AttentionSpec,
    step: Step,
    device: torch.device,
    *,
    shared: Sequence[tuple[int, int, int]] = (),
) -> AttentionInputs:
    """Draw queries, keys and values; rows that share pages have the same keys and values there."""
    draw = Draw(device, seed=1)
    heads = (spec.num_heads, spec.head_dim)
    kv_heads = (spec.num_kv_heads, spec.head_dim)
    q_THD = draw.normal(step.batch.num_tokens, *heads, dtype=spec.dtype)
    q_THD[step.num_real_tokens :] = torch.nan
    k_rows = [draw.normal(len(slots), *kv_heads, dtype=spec.dtype) for slots in step.slots]
    v_rows = [draw.normal(len(slots), *kv_heads, dtype=spec.dtype) for slots in step.slots]
    for begin, end, kv_end in shared:
        for row in range(begin + 1, end):
            k_rows[row][:kv_end] = k_rows[begin][:kv_end]
            v_rows[row][:kv_end] = v_rows[begin][:kv_end]
    sinks_H = draw.normal(spec.num_heads) if "sinks" in spec.features else None
    return AttentionInputs(
        q_THD=q_THD,
        k_rows=k_rows,
        v_rows=v_rows,
        sinks_H=sinks_H,
        chosen_TKk=_choose_blocks(spec, step) if CHOSEN_BLOCKS in spec.features else None,
    )


def _choose_blocks(spec: AttentionSpec, step: Step) -> Tensor:
    """Return a query's own block, and of those before it every other one, by kv head. [T, K, k]

    In falling order, as many as there may be; padding has numbers of no block at all.
    """
    num_blocks = -(-step.batch.max_kv // spec.block_size)
    shape = (step.batch.num_tokens, spec.num_kv_heads, num_blocks // 2 + 2)
    chosen = torch.full(shape, -1, dtype=torch.int32)
    for token, position in enumerate(step.batch.positions_T[: step.num_real_tokens].tolist()):
        own = position // spec.block_size
        for head in range(spec.num_kv_heads):
            read = [own, *(n for n in range(own - 1, -1, -1) if (n + head) % 2)]
            chosen[token, head, : len(read)] = torch.tensor(read)
    chosen[step.num_real_tokens :] = num_blocks + 7
    return chosen.to(step.batch.positions_T.device)


def filled_pages(
    provider: AttentionProvider, step: Step, inputs: AttentionInputs, max_tokens: int
) -> Tensor:
    """Return pages with the tokens that earlier steps would have written, else not-a-numbers.

    Written through the provider, row by row, ``max_tokens`` at a time, each as a prefill.
    """
    shape = provider.kv_shape(step.num_pages)
    kv = torch.empty(shape, dtype=page_format_of(provider).dtype, device=inputs.q_THD.device)
    kv.fill_(torch.nan if kv.is_floating_point() else 0)
    for row, slots in enumerate(step.slots):
        num_queries, _ = step.batch.host_rows[row]
        num_earlier = len(slots) - num_queries
        for begin in range(0, num_earlier, max_tokens):
            end = min(begin + max_tokens, num_earlier)
            past = prefill_batch(step, row, begin, end)
            provider.plan(past)
            provider.write(inputs.k_rows[row][begin:end], inputs.v_rows[row][begin:end], kv, past)
    return kv


def attend(
    provider: AttentionProvider,
    kv: Tensor,
    step: Step,
    inputs: AttentionInputs,
    *,
    is_planned: bool = False,
) -> Tensor:
    """Run the step as a layer does: write its newest tokens, then attend. [T, H, D]

    With ``is_planned`` as the step's later layers do, without a plan of its own.
    """
    newest = [num_queries for num_queries, _ in step.batch.host_rows[: step.num_real_rows]]
    keys = [k[-num:] for k, num in zip(inputs.k_rows, newest, strict=True)]
    values = [v[-num:] for v, num in zip(inputs.v_rows, newest, strict=True)]
    num_padding = step.batch.num_tokens - step.num_real_tokens
    padding = keys[0].new_full((num_padding, *keys[0].shape[1:]), torch.nan)
    if not is_planned:
        provider.plan(step.batch)
    provider.write(torch.cat([*keys, padding]), torch.cat([*values, padding]), kv, step.batch)
    given = {} if inputs.chosen_TKk is None else {"chosen_TKk": inputs.chosen_TKk}
    return provider.run(inputs.q_THD, kv, step.batch, sinks_H=inputs.sinks_H, **given)


def dense_attention(spec: AttentionSpec, rows: Rows, inputs: AttentionInputs) -> Tensor:
    """Attend row by row in float64 over whole score matrices. [real tokens, H, D]"""
    outs: list[Tensor] = []
    begin = 0
    for row, (num_queries, length) in enumerate(rows):
        per_head = spec.num_heads // spec.num_kv_heads
        k_LKD, v_LKD = inputs.k_rows[row], inputs.v_rows[row]
        kind = NARROW.get(spec.kv_dtype)
        if kind is not None:
            k_LKD, v_LKD = (kind.unpack(kind.pack(x_LKD)) for x_LKD in (k_LKD, v_LKD))
        k_HLD = k_LKD.double().repeat_interleave(per_head, dim=1).transpose(0, 1)
        v_HLD = v_LKD.double().repeat_interleave(per_head, dim=1).transpose(0, 1)
        q_HQD = inputs.q_THD[begin : begin + num_queries].double().transpose(0, 1)
        scores_HQL = q_HQD @ k_HLD.transpose(1, 2) * spec.scale
        if spec.soft_cap is not None:
            scores_HQL = spec.soft_cap * torch.tanh(scores_HQL / spec.soft_cap)
        seen_QL = torch.ones(length, length, device=k_HLD.device)
        if BIDIRECTIONAL not in spec.features:
            seen_QL = seen_QL.tril()
        if spec.window is not None:
            seen_QL = seen_QL * _within(spec, length, k_HLD.device)
        scores_HQL = scores_HQL.masked_fill(seen_QL[-num_queries:] == 0, -torch.inf)
        if inputs.chosen_TKk is not None:
            chosen_QKk = inputs.chosen_TKk[begin : begin + num_queries]
            read_HQL = _in_blocks(spec, chosen_QKk, length).repeat_interleave(per_head, dim=0)
            scores_HQL = scores_HQL.masked_fill(~read_HQL, -torch.inf)
        if inputs.sinks_H is not None:
            sinks_HQ1 = inputs.sinks_H.double()[:, None, None].expand(-1, num_queries, 1)
            scores_HQL = torch.cat((scores_HQL, sinks_HQ1), dim=-1)
        probs_HQL = scores_HQL.softmax(dim=-1)[..., :length]
        outs.append((probs_HQL @ v_HLD).transpose(0, 1))
        begin += num_queries
    return torch.cat(outs)


def prefill_batch(step: Step, row: int, begin: int, end: int) -> StepBatch:
    """Return the batch of one row that writes its tokens [begin, end)."""
    slots = step.slots[row]
    count, device = end - begin, slots.device
    return replace(
        step.batch,
        num_tokens=count,
        num_rows=1,
        max_query=count,
        max_kv=end,
        positions_T=torch.arange(begin, end, device=device),
        query_starts_R1=torch.tensor([0, count], dtype=torch.int32, device=device),
        kv_lengths_R=torch.tensor([end], dtype=torch.int32, device=device),
        page_table_RP=step.batch.page_table_RP[row : row + 1],
        write_slots_T=slots[begin:end],
        row_of_token_T=torch.zeros(count, dtype=torch.int32, device=device),
        counts=torch.tensor([1, count, 0], dtype=torch.int32, device=device),
        tree_N4=step.batch.tree_N4[:0],
        host_rows=[(count, end)],
    )


def row_mixes(page_size: int) -> Iterator[tuple[str, Rows, dict[str, Any]]]:
    p = page_size
    yield "one token", [(1, 1)], {}
    yield "one prefill", [(37, 37)], {}
    yield "prefill of whole pages", [(2 * p, 2 * p)], {}
    yield (
        "decode at page edges",
        [(1, max(n, 1)) for n in (1, p - 1, p, p + 1, 2 * p, 2 * p + 1)],
        {},
    )
    yield "decode with padding rows", [(1, 5), (1, 3 * p + 2)], {"num_padding_rows": 6}
    yield "decode, loose bounds", [(1, 5), (1, p)], {"bound_slack": 2}
    yield "chunk after a cached prefix", [(9, 2 * p + 9)], {}
    yield "chunk from the middle of a page", [(p + 3, p + p // 2 + 3)], {}
    ragged = [(6, 6), (1, 40), (p, 3 * p), (1, 1), (1, p), (3, 2 * p + 1)]
    yield "ragged", ragged, {}
    yield "ragged with padding rows", ragged, {"num_padding_rows": 3}
    yield "verification, four queries a row", [(4, 4 + n) for n in (0, p // 2, p, 50)], {}
    family = [(1, 4 * p + n) for n in (1, 2, 3, p)]
    yield "decode, one shared prefix", family, {"shared": [(0, 4, 4 * p)]}
    tree = [(1, 4 * p + 1), (1, 4 * p + 5), (1, 2 * p + 1), (1, 9)]
    nested = {"shared": [(0, 3, 2 * p), (0, 2, 4 * p)], "num_padding_rows": 4}
    yield "decode, nested shared prefixes", tree, nested
    mixed = [(5, 2 * p + 5), (1, 2 * p + 1), (8, 8)]
    yield "mixed, shared prefix", mixed, {"shared": [(0, 2, 2 * p)]}
    yield "long decode", [(1, 1000), (1, 3)], {}


FP8 = torch.float8_e4m3fn
IN_CHUNKS = frozenset({CHUNKED})
WINDOW, SINKS, CAP = (frozenset({name}) for name in ("sliding_window", "sinks", "soft_cap"))


def _feature_specs(plain: AttentionSpec) -> Iterator[tuple[str, AttentionSpec]]:
    yield "window of 4", replace(plain, features=WINDOW, window=4)
    yield "window of one", replace(plain, features=WINDOW, window=1)
    for chunk in (4, 7, 4096):
        yield f"chunks of {chunk}", replace(plain, features=IN_CHUNKS, window=chunk)
    yield "chunks and int8", replace(plain, features=IN_CHUNKS, window=5, kv_dtype=torch.int8)
    yield "wide window", replace(plain, features=WINDOW, window=4096)
    yield "sinks", replace(plain, features=SINKS)
    yield "soft cap", replace(plain, features=CAP, soft_cap=2.0)
    yield "low soft cap", replace(plain, features=CAP, soft_cap=0.1, scale=1.0)
    yield "int8 pages", replace(plain, kv_dtype=torch.int8)
    yield "int8 pages and a window", replace(plain, kv_dtype=torch.int8, features=WINDOW, window=5)
    yield "fp8 pages", replace(plain, kv_dtype=FP8)
    yield "fp8 pages and a window", replace(plain, kv_dtype=FP8, features=WINDOW, window=5)
    yield "window and sinks", replace(plain, features=WINDOW | SINKS, window=5)
    yield "window and soft cap", replace(plain, features=WINDOW | CAP, window=5, soft_cap=2.0)
    yield "heads of 256", replace(plain, head_dim=256, features=WINDOW, window=20, scale=256**-0.5)


def _within(spec: AttentionSpec, length: int, device: torch.device) -> Tensor:
    """Return which tokens, later ones too, lie in each query's window or chunk. bool. [L, L]"""
    assert spec.window is not None, "every token is seen"
    tokens_L = torch.arange(length, device=device)
    if CHUNKED in spec.features:
        return tokens_L[None, :] // spec.window == tokens_L[:, None] // spec.window
    if BOTH_SIDES in spec.features:
        return (tokens_L[None, :] - tokens_L[:, None]).abs() < spec.window
    return tokens_L[None, :] > tokens_L[:, None] - spec.window


def _in_blocks(spec: AttentionSpec, chosen_QKk: Tensor, length: int) -> Tensor:
    """Return which tokens of a row lie in chosen blocks. bool. [K, Q, L]"""
    blocks_L = torch.arange(length, device=chosen_QKk.device) // spec.block_size
    return (chosen_QKk.unsqueeze(2) == blocks_L[:, None]).any(3).transpose(0, 1)


def _far_steps(plain: AttentionSpec) -> Iterator[tuple[str, AttentionSpec, Rows]]:
    """Yield a scale that does not follow from the head size, and more tokens than most steps."""
    page = plain.page_size
    scaled = replace(plain, scale=0.3)
    yield "a scale of its own, mixed", scaled, [(7, 7), (1, page + 1), (5, 3 * page), (1, 1)]
    yield "a scale of its own, decode", scaled, [(1, 4), (1, page), (1, 3 * page + 1)]
    few = replace(plain, num_heads=2, num_kv_heads=1, head_dim=32, scale=32**-0.5)
    yield "a long cache", replace(few, max_length=5000), [(1, 4500), (1, 2), (3, 2100)]
    long = replace(few, max_length=2048, max_tokens=2048)
    yield "a long prompt", long, [(1, 40), (1200, 1250)]


def _window_steps(
    plain: AttentionSpec,
) -> Iterator[tuple[str, AttentionSpec, Rows, dict[str, Any]]]:
    """Yield steps that pages before the windows are taken from: what reads them gets NaN."""
    page = plain.page_size
    for window in (page - 1, page, page + 1, 3 * page):
        spec = replace(plain, features=WINDOW, window=window)
        decodes = [(1, max(1, window + n)) for n in (-1, 0, 1, page, 5 * page)]
        yield f"decode past a window of {window}", spec, decodes, {"num_padding_rows": 1}
        chunks = [(page + 3, 6 * page), (5, window + 5), (3, 5 * page + 1), (1, 4 * page)]
        yield f"chunks past a window of {window}", spec, chunks, {"num_padding_rows": 1}
    for chunk in (page, 3 * page + 1):
        spec = replace(plain, features=IN_CHUNKS, window=chunk)
        decodes = [(1, max(1, chunk + n)) for n in (-1, 0, 1, page, 5 * page)]
        yield f"decode past a chunk of {chunk}", spec, decodes, {"num_padding_rows": 1}
        prompts = [(page + 3, 6 * page), (5, chunk + 5), (3, 5 * page + 1), (1, 4 * page)]
        yield f"prompts past a chunk of {chunk}", spec, prompts, {"num_padding_rows": 1}
    few = replace(plain, features=WINDOW | SINKS, window=300)
    long: Rows = [(1, 1000), (1, 301), (4, 700), (1, 3)]
    yield "long, a window and sinks", few, long, {}
    narrow = replace(plain, features=WINDOW, window=40, kv_dtype=torch.int8)
    yield "int8 pages past a window", narrow, [(1, 200), (9, 150), (1, 30)], {}


def _block_steps(
    plain: AttentionSpec,
) -> Iterator[tuple[str, AttentionSpec, Rows, dict[str, Any]]]:
    """Yield steps that read chosen blocks, which pages divide, or which divide no page."""
    page, by_block = plain.page_size, frozenset({CHOSEN_BLOCKS})
    for size in (page, 2 * page, 5):
        spec = replace(plain, features=by_block, block_size=size)
        decodes = [(1, n) for n in (1, size, size + 1, 3 * size, 7 * size + 2)]
        yield f"decode, blocks of {size}", spec, decodes, {"num_padding_rows": 2}
        prompts = [(size + 3, 4 * size), (1, 2 * size), (7, 7), (3, 5 * size + 1)]
        yield f"prompts, blocks of {size}", spec, prompts, {"num_padding_rows": 1}
    wide = replace(plain, features=by_block, block_size=128, num_heads=16, num_kv_heads=1)
    yield "blocks of 128, one kv head", wide, [(1, 900), (1, 40), (2, 300)], {}


def _whole_steps(
    plain: AttentionSpec,
) -> Iterator[tuple[str, AttentionSpec, Rows, dict[str, Any]]]:
    """Yield whole texts whose tokens see each other, before and behind."""
    page, both = plain.page_size, frozenset({BIDIRECTIONAL})
    spec = replace(plain, features=both, num_kv_heads=4)
    texts: Rows = [(7, 7), (1, 1), (page + 3, page + 3), (2, 2), (2 * page, 2 * page)]
    yield "both ways, texts", spec, texts, {"num_padding_rows": 2}
    yield "both ways, one text", spec, [(37, 37)], {}
    yield "both ways, one token", spec, [(1, 1), (1, 1)], {}
    yield "both ways, long", spec, [(300, 300), (5, 5)], {}
    small = replace(spec, head_dim=32, scale=32**-0.5)
    yield "both ways, heads of 32", small, texts, {"num_padding_rows": 1}
    yield "both ways, shared kv heads", replace(spec, num_kv_heads=2), texts, {}
    near = replace(spec, features=both | {BOTH_SIDES}, window=5)
    yield "both ways, near tokens", near, texts, {"num_padding_rows": 2}
    yield "both ways, own tokens", replace(near, window=1), texts, {}
    yield "both ways, near tokens of a long text", replace(near, window=page + 1), [(300, 300)], {}


def _shared_steps(
    plain: AttentionSpec,
) -> Iterator[tuple[str, AttentionSpec, Rows, dict[str, Any]]]:
    """Yield decode steps whose rows share prefixes that the tree names."""
    kv_end = -(-384 // plain.page_size) * plain.page_size
    rows = [(1, kv_end + 1), (1, kv_end + 150), (1, kv_end + 30)]
    options: dict[str, Any] = {"shared": [(0, 3, kv_end)], "num_padding_rows": 1}
    yield "sinks", replace(plain, features=SINKS), rows, options
    yield "soft cap", replace(plain, features=CAP, soft_cap=2.0), rows, options
    for window in (90, 290):
        spec = replace(plain, features=WINDOW | SINKS, window=window)
        yield f"window of {window}", spec, rows, options | {"window": window}


def plain_spec(dtype: torch.dtype, page_size: int) -> AttentionSpec:
    """Return causal attention of 4 heads over 2 kv heads of size 64."""
    return AttentionSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        dtype=dtype,
        kv_dtype=dtype,
        page_size=page_size,
        scale=64**-0.5,
        max_length=1024,
        max_rows=32,
        max_tokens=512,
    )
