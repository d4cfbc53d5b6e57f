"""Attention: decode, prefill, and the tree."""

import itertools
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from cuda_parts.timing import BF16, DEVICE, Here, Report, copies_for, randn
from headstock.ops.attention import AttentionSpec, StepBatch
from headstock_triton.attention.provider import PagedAttention, Tuning


def make_batch(queries, lengths, page_size, *, groups=(), max_kv=None) -> tuple[StepBatch, int]:
    """Build a step; ``groups`` are (rows, shared tokens) of neighbouring rows with equal pages."""
    rows = len(lengths)
    pages = [-(-length // page_size) for length in lengths]
    total = sum(pages)
    order = (torch.randperm(total) + 1).to(torch.int32)
    table = torch.zeros(rows, max(pages), dtype=torch.int32)
    at = 0
    for row, count in enumerate(pages):
        table[row, :count] = order[at : at + count]
        at += count
    nodes, first = [], 0
    for size, shared in groups:
        table[first : first + size, : shared // page_size] = table[first, : shared // page_size]
        nodes.append((first, first + size, 0, shared))
        first += size
    used, table = torch.unique(table, return_inverse=True)
    table = (table + int(used[0] != 0)).to(torch.int32)
    starts = torch.tensor([0, *itertools.accumulate(queries)], dtype=torch.int32)
    tokens = int(starts[-1])
    positions = torch.cat([torch.arange(n - q, n) for q, n in zip(queries, lengths, strict=True)])
    row_of = torch.repeat_interleave(torch.arange(rows), torch.tensor(queries))
    slots = table[row_of, positions // page_size].long() * page_size + positions % page_size
    batch = StepBatch(
        num_tokens=tokens,
        num_rows=rows,
        max_query=max(queries),
        max_kv=max_kv or max(lengths),
        positions_T=positions.to(DEVICE),
        query_starts_R1=starts.to(DEVICE),
        kv_lengths_R=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        page_table_RP=table.to(DEVICE),
        write_slots_T=slots.to(DEVICE),
        row_of_token_T=row_of.int().to(DEVICE),
        counts=torch.tensor([rows, tokens, len(nodes)], dtype=torch.int32, device=DEVICE),
        tree_N4=torch.tensor(nodes, dtype=torch.int32).reshape(-1, 4).to(DEVICE),
        host_rows=[],
    )
    return batch, int(table.max()) + 1


def make_spec(heads, kv_heads, batch, page_size) -> AttentionSpec:
    return AttentionSpec(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=128,
        dtype=BF16,
        kv_dtype=BF16,
        page_size=page_size,
        scale=128**-0.5,
        max_length=32768,
        max_rows=max(batch.num_rows, 512),
        max_tokens=max(batch.num_tokens, 8192),
    )


def attention_calls(tuning, batch, num_pages, heads, kv_heads, page_size):
    """Return calls of single layers, the plan made beforehand, with layers enough to miss L2."""
    spec = make_spec(heads, kv_heads, batch, page_size)
    provider = PagedAttention(spec, Here(), tuning)
    shape = provider.kv_shape(num_pages)
    layer_bytes = torch.Size(shape).numel() * 2
    count = min(4, copies_for(layer_bytes))
    layers = [randn(*shape) for _ in range(count)]
    q = randn(batch.num_tokens, heads, 128)
    provider.plan(batch)
    provider.run(q, layers[0].new_empty(shape), batch)  # the leader: makes the lists
    return [lambda kv=kv: provider.run(q, kv, batch) for kv in layers]


DECODES = {
    "8B 1x384": (32, 8, [384]),
    "8B 1x4096": (32, 8, [4096]),
    "8B 8x16384": (32, 8, [16384] * 8),
    "8B 64x4096": (32, 8, [4096] * 64),
    "8B 256x1152": (32, 8, [1024 + i for i in range(256)]),
    "0.6B 1x384": (16, 8, [384]),
    "0.6B 256x1152": (16, 8, [1024 + i for i in range(256)]),
}


def part_decode(report: Report) -> None:
    for case, (heads, kv_heads, lengths) in DECODES.items():
        for page_size in (64, 16):
            batch, num_pages = make_batch([1] * len(lengths), lengths, page_size)
            num_bytes = sum(lengths) * kv_heads * 128 * 2 * 2
            tunings = [
                Tuning(tail=tail, decode_tma=tma, programs_per_sm=programs)
                for tail, tma, programs in itertools.product(
                    ((64, 4, 2), (64, 4, 3), (64, 4, 4), (128, 4, 2), (32, 4, 4), (64, 2, 3)),
                    (False, True),
                    (6,),
                )
                if not (tma and (page_size < tail[0] or tail[0] != 64))
            ]
            tunings += [Tuning(programs_per_sm=n) for n in (3, 4, 8, 12)]
            for tuning in tunings if page_size == 64 else [Tuning()]:
                calls = partial(
                    attention_calls, tuning, batch, num_pages, heads, kv_heads, page_size
                )
                report.time(
                    "decode",
                    calls,
                    num_bytes=num_bytes,
                    case=f"{case} page {page_size}",
                    tail=tuning.tail,
                    tma=tuning.decode_tma,
                    programs=tuning.programs_per_sm,
                )
    report.best("decode")


PREFILLS = {
    "8B 4x4096": (32, 8, [4096] * 4, [4096] * 4),
    "8B 1x8192 after 8192": (32, 8, [8192], [16384]),
    "8B 128x64 after 2048": (32, 8, [64] * 128, [2112] * 128),
    "0.6B 8x1024": (16, 8, [1024] * 8, [1024] * 8),
    "0.6B 1x128": (16, 8, [128], [128]),
}


def prefill_tunings(page_size: int) -> list[Tuning]:
    shapes = [
        ((64, 64, 4, 3), True, None),
        ((128, 64, 8, 3), True, None),
        ((128, 64, 8, 2), True, 128),
        ((128, 64, 8, 3), True, 128),
        ((128, 64, 8, 2), False, 128),
        ((128, 32, 8, 3), True, 128),
        ((128, 32, 8, 4), True, 128),
        ((64, 64, 4, 2), True, 168),
        ((64, 32, 4, 4), True, 168),
        ((128, 128, 8, 3), False, None),
    ]
    if page_size == 128:
        shapes = [((128, 128, 8, 2), True, None), ((64, 128, 4, 2), True, 240)]
    return [
        Tuning(
            prefill=shape,
            long_prefill=shape,
            prefill_tma=tma,
            long_registers=registers,
            long_queries=1 if registers else 1 << 30,
        )
        for shape, tma, registers in shapes
    ]


def part_prefill(report: Report) -> None:
    prefill(report, (64, 128), None)


def prefill(report: Report, page_sizes: tuple[int, ...], tunings: list[Tuning] | None) -> None:
    for case, (heads, kv_heads, queries, lengths) in PREFILLS.items():
        flops = (
            4
            * heads
            * 128
            * sum(q * (n - q) + q * (q + 1) // 2 for q, n in zip(queries, lengths, strict=True))
        )
        for page_size in page_sizes:
            batch, num_pages = make_batch(queries, lengths, page_size)
            for tuning in tunings or prefill_tunings(page_size):
                calls = partial(
                    attention_calls, tuning, batch, num_pages, heads, kv_heads, page_size
                )
                report.time(
                    "prefill",
                    calls,
                    flops=flops,
                    case=f"{case} page {page_size}",
                    prefill=tuning.prefill,
                    tma=tuning.prefill_tma,
                    registers=tuning.long_registers,
                )
    q, k = randn(4, 32, 4096, 128), randn(4, 8, 4096, 128)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
        report.time(
            "sdpa cudnn",
            [lambda: scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)],
            flops=4 * 32 * 128 * 4 * 4096 * 4097 // 2,
            case="8B 4x4096",
        )
    report.best("prefill")


TREES = {
    "8B 512 rows, 32x2048 + 96": (32, 8, 32, 16, 2048, 96),
    "0.6B 512 rows, 32x2048 + 96": (16, 8, 32, 16, 2048, 96),
    "8B 256 rows, 1x4096 + 200": (32, 8, 1, 256, 4096, 200),
    "8B 4 rows, 1x4096 + 100": (32, 8, 1, 4, 4096, 100),
}


def part_tree(report: Report) -> None:
    for case, (heads, kv_heads, groups, members, shared, tail) in TREES.items():
        rows = groups * members
        lengths = [shared + tail] * rows
        page = 64
        plain, num_pages = make_batch(
            [1] * rows, lengths, page, groups=[(members, shared)] * groups
        )
        tree = plain.tree_N4
        plain.tree_N4, plain.counts = tree[:0], plain.counts.clone()
        plain.counts[2] = 0
        per_token = kv_heads * 128 * 2 * 2
        calls = partial(attention_calls, Tuning(), plain, num_pages, heads, kv_heads, page)
        report.time("no tree", calls, num_bytes=rows * (shared + tail) * per_token, case=case)
        shared_bytes = (groups * shared + rows * tail) * per_token
        for node, tail, chunk in itertools.product(
            ((64, 64, 4, 3), (64, 64, 4, 2)),
            ((64, 4, 3), (64, 2, 3), (64, 2, 2), (32, 4, 3), (32, 2, 3), (32, 2, 2), (64, 2, 1)),
            (256,),
        ):
            batch, num_pages = make_batch(
                [1] * rows, lengths, page, groups=[(members, shared)] * groups
            )
            tuning = Tuning(node=node, short_tail=tail, node_min_chunk=chunk)
            calls = partial(attention_calls, tuning, batch, num_pages, heads, kv_heads, page)
            report.time(
                "tree", calls, num_bytes=shared_bytes, case=case, node=node, tail=tail, chunk=chunk
            )
    report.best("tree")
