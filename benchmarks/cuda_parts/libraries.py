"""Attention by the optional libraries beside our own."""

import itertools
import time
from functools import partial

import torch

from cuda_parts.attention import make_batch, make_spec
from cuda_parts.timing import DEVICE, Here, Report, randn, time_eager
from headstock_triton.attention.provider import PagedAttention

LIBRARY_PREFILLS = {
    "8B 1x8192 causal": ([8192], [8192]),
    "8B 1x8192 after 8192": ([8192], [16384]),
    "8B 4x2048 after 4096": ([2048] * 4, [6144] * 4),
    "8B 7x1024 after 1024, 200 decode": ([1024] * 7 + [1] * 200, [2048] * 7 + [1152] * 200),
}
LIBRARY_DECODES = {
    "8B 256x1152": [1024 + i for i in range(256)],
    "8B 64x4096": [4096] * 64,
    "8B 8x16384": [16384] * 8,
}


def part_flash(report: Report) -> None:
    """Compare attention by optional libraries with ours; each result is checked before it is timed.

    A library that is not installed, or fails, is a line with its error.
    """
    for page_size, (case, (queries, lengths)) in itertools.product(
        (64, 128), LIBRARY_PREFILLS.items()
    ):
        seen = sum(q * (n - q) + q * (q + 1) // 2 for q, n in zip(queries, lengths, strict=True))
        facts = {"case": f"{case} page {page_size}", "timer": time_eager, "flops": 4 * 4096 * seen}
        for name, build in prefill_ways(page_size).items():
            compare(report, name, build, queries, lengths, page_size, facts)
    for case, lengths in LIBRARY_DECODES.items():
        facts = {"case": case, "num_bytes": sum(lengths) * 8 * 128 * 2 * 2}
        for name, build in {"triton": with_triton, "flashinfer": with_flashinfer}.items():
            compare(report, name, build, [1] * len(lengths), lengths, 64, facts)


def prefill_ways(page_size: int) -> dict:
    """Return builders by name. What provides is FlashAttention at pages of 64, by its own tile."""
    if page_size == 128:
        return {"triton": with_triton, "flash, whole pages": with_flash}
    return {
        "triton": with_triton,
        "flash": with_flash,
        "flash, whole pages": partial(with_flash, tile=(128, 64)),
    }


def with_triton(spec):
    return PagedAttention(spec, Here())


def with_flash(spec, tile=None):
    from flash_attn.cute import flash_attn_varlen_func, interface

    from headstock_cuda.flash_attention import FlashRows

    def attend_by_tile(*args, **kwargs):
        return interface._flash_attn_fwd(*args, **kwargs, tile_mn=tile)[:2]

    attend = attend_by_tile if tile else flash_attn_varlen_func
    return PagedAttention(spec, Here(), queries=FlashRows(spec, Here(), attend))


def with_flashinfer(spec):
    from headstock_cuda.flashinfer import build_flashinfer

    return build_flashinfer(spec, Here())


def compare(report: Report, name, build, queries, lengths, page_size, facts) -> None:
    """Build a provider, say how long it compiled, check a layer's result, and time it."""
    batch, num_pages = make_batch(queries, lengths, page_size)
    batch.host_rows = list(zip(queries, lengths, strict=True))
    case = facts["case"]
    try:
        provider = build(make_spec(32, 8, batch, page_size))
        start = time.perf_counter()
        provider.plan(batch)
        torch.cuda.synchronize()
        compile_s = round(time.perf_counter() - start, 2)
        layers = [randn(*provider.kv_shape(num_pages)) for _ in range(3)]
        q = randn(batch.num_tokens, 32, 128)
        out = provider.run(q, layers[0], batch)
        error = sampled_error(out, q, layers[0], batch, page_size)
    except Exception as failure:  # noqa: BLE001 - a library that fails is a result too
        report.add(name, case=case, error=f"{type(failure).__name__}: {str(failure)[:300]}")
        return
    report.add(f"{name} error", case=case, error=error, compile_s=compile_s)
    if error < 1e-2:
        report.time(name, [lambda kv=kv: provider.run(q, kv, batch) for kv in layers], **facts)


def sampled_error(out, q, kv, batch, page_size) -> float:
    """Return the relative error of some queries of each row against float32."""
    off = whole = 0.0
    for row, (queries, length) in enumerate(batch.host_rows):
        first = int(batch.query_starts_R1[row])
        some = torch.unique(torch.tensor([0, queries // 3, queries - 1], device=DEVICE))
        pages = kv[batch.page_table_RP[row, : -(-length // page_size)].long()].float()
        k, v = (
            pages[:, i].transpose(1, 2).flatten(0, 1)[:length].repeat_interleave(4, 1)
            for i in (0, 1)
        )
        scores = torch.einsum("qhd,lhd->hql", q[first + some].float(), k) * 128**-0.5
        is_later = torch.arange(length, device=DEVICE) > (length - queries + some)[:, None]
        weights = scores.masked_fill(is_later, -torch.inf).softmax(-1)
        right = torch.einsum("hql,lhd->qhd", weights, v)
        off += float((out[first + some].float() - right).square().sum())
        whole += float(right.square().sum())
    return (off / whole) ** 0.5
