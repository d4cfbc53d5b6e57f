"""Cases of the fused preparation of queries, keys and values, on the backend's own pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.attention import AttentionProvider, AttentionSpec, attention, page_format_of
from headstock.ops.cases.attention import plain_spec
from headstock.ops.cases.base import Bench, Case
from headstock.ops.cases.batches import Step, make_step

MIXED = [(7, 7), (1, 40), (5, 33), (1, 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Variant:
    """What of the preparation is asked."""

    rows: list[tuple[int, int]]
    num_padding_rows: int = 0
    has_norm: bool = False
    has_wide_norm: bool = False
    rotary_size: int = 64
    is_interleaved: bool = False
    is_normed_last: bool = False
    has_normed_values: bool = False
    takes_keys: bool = False


def rotate_and_write_cases(bench: Bench) -> Iterator[Case]:
    """Yield step shapes, head ratios, norms, kinds of rotation, and none."""
    plain = plain_spec(bench.dtype, bench.page_sizes[0])
    mixed = _Variant(rows=MIXED)
    yield _case(bench, "one token", plain, replace(mixed, rows=[(1, 1)]))
    yield _case(bench, "decode", plain, replace(mixed, rows=[(1, n) for n in (1, 16, 17, 90)]))
    yield _case(bench, "mixed", plain, mixed)
    yield _case(bench, "padding rows", plain, replace(mixed, num_padding_rows=5))
    yield _case(bench, "norms of queries and keys", plain, replace(mixed, has_norm=True))
    if bench.dtype != torch.float32:
        wide = replace(mixed, has_norm=True, has_wide_norm=True)
        yield _case(bench, "norms with float32 weights", plain, wide)
    last = replace(mixed, has_norm=True, is_normed_last=True)
    yield _case(bench, "norms behind the rotation", plain, last)
    partly = replace(last, rotary_size=32, is_interleaved=True)
    yield _case(bench, "norms behind the rotation of neighbours", plain, partly)
    yield _case(bench, "no rotation", plain, replace(mixed, rotary_size=0))
    yield _case(bench, "half of the features", plain, replace(mixed, rotary_size=32))
    yield _case(bench, "neighbours as pairs", plain, replace(mixed, is_interleaved=True))
    for heads, kv_heads in ((1, 1), (9, 3), (8, 1)):
        spec = replace(plain, num_heads=heads, num_kv_heads=kv_heads)
        yield _case(bench, f"{heads} heads, {kv_heads} kv", spec, mixed)
    long = replace(plain, num_heads=2, num_kv_heads=1, max_length=2048, max_tokens=2048)
    yield _case(bench, "a long prompt", long, replace(mixed, rows=[(1, 40), (1200, 1250)]))
    large = replace(plain, head_dim=128)
    yield _case(bench, "head size 128", large, replace(mixed, rotary_size=128, has_norm=True))
    normed = replace(mixed, has_norm=True, has_normed_values=True)
    yield _case(bench, "values normalised", plain, normed)
    yield _case(bench, "values normalised, half rotated", plain, replace(normed, rotary_size=32))
    yield _case(bench, "keys as values", plain, replace(mixed, takes_keys=True))
    both = replace(normed, takes_keys=True)
    yield _case(bench, "keys as values, normalised", replace(plain, head_dim=128), both)
    odd = replace(plain, num_heads=9, num_kv_heads=3)
    yield _case(bench, "keys as values, 9 heads", odd, replace(both, num_padding_rows=5))


def query_cases(bench: Bench) -> Iterator[Case]:
    """Yield token counts, heads, norms, kinds of rotation, none, views and padding."""
    draw, where = bench.draw(), bench.device.torch_device

    def case(label: str, q_TC: Tensor, size: int, *, heads: int = 4, **options: Any) -> Case:
        head_dim = q_TC.shape[1] // heads
        norm, real = options.get("norm"), options.get("real")
        is_wide = norm is not None and norm.dtype != q_TC.dtype
        sizes = {"num_heads": heads, "head_dim": head_dim, "rotary_size": size}
        features = frozenset({"wide-weight"} if is_wide else ())
        return Case(
            label=label,
            spec=replace(bench.spec(sizes), features=features),
            args=(
                q_TC,
                rotary_table(90, size, where) if size else None,
                norm,
                torch.arange(q_TC.shape[0], device=where) * 7 % 90,
            ),
            kwargs={
                "num_heads": heads,
                "head_dim": head_dim,
                "eps": 1e-6,
                "is_interleaved": bool(options.get("is_interleaved")),
            },
            num_real=real,
        )

    dtype = bench.dtype
    norm_D = draw.normal(64, dtype=dtype)
    for num_tokens in (1, 5, 130):
        q_TC = draw.normal(num_tokens, 256, dtype=dtype)
        yield case(f"{num_tokens} tokens", q_TC, 64)
        yield case(f"{num_tokens} tokens, normalised", q_TC, 64, norm=norm_D)
    q_TC = draw.normal(7, 256, dtype=dtype)
    if dtype != torch.float32:
        wide_D = draw.normal(64, dtype=torch.float32)
        yield case("a norm with float32 weights", q_TC, 64, norm=wide_D)
    yield case("no rotation", q_TC, 0, norm=norm_D)
    yield case("half of the features", q_TC, 32, norm=norm_D)
    yield case("neighbours as pairs", q_TC, 64, is_interleaved=True)
    yield case("one head of 256", q_TC, 256, heads=1, norm=draw.normal(256, dtype=dtype))
    wide_TC = draw.normal(7, 384, dtype=dtype)
    yield case("columns of a wider tensor", wide_TC[:, 64:320], 64, norm=norm_D)
    padded_TC = q_TC.clone()
    padded_TC[5:] = torch.nan
    yield case("padding", padded_TC, 64, norm=norm_D, real=5)


def rotary_table(num_positions: int, size: int, device: torch.device) -> Tensor:
    """Return cosines, then sines, with base 10,000. float32. [L, C]"""
    powers_F = torch.arange(0, size, 2, dtype=torch.float64) / size
    angles_LF = torch.arange(num_positions, dtype=torch.float64)[:, None] * 10_000.0**-powers_F
    return torch.cat((angles_LF.cos(), angles_LF.sin()), dim=-1).to(torch.float32).to(device)


def _case(bench: Bench, label: str, spec: AttentionSpec, variant: _Variant) -> Case:
    provider = bench.resolver.resolve(attention, spec.as_spec())(spec, bench.device)
    where = bench.device.torch_device
    step = make_step(variant.rows, spec.page_size, where, num_padding_rows=variant.num_padding_rows)
    kwargs = _arguments(bench, spec, variant, step)

    def call(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        kv = torch.zeros(
            provider.kv_shape(step.num_pages), dtype=page_format_of(provider).dtype, device=where
        )
        provider.plan(step.batch)
        q_THD = run(**kwargs, kv=kv, batch=step.batch, provider=provider)
        return q_THD[: step.num_real_tokens], *_written(provider, kv, step)

    sizes = {
        "num_heads": spec.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "rotary_size": variant.rotary_size,
        "page_size": spec.page_size,
    }
    asked = bench.spec(sizes, page_format=page_format_of(provider).tag)
    known = {
        "wide-weight": variant.has_wide_norm,
        "normed-last": variant.is_normed_last,
        "normed-values": variant.has_normed_values,
        "keys-as-values": variant.takes_keys,
    }
    features = frozenset(name for name, is_asked in known.items() if is_asked)
    return Case(label=label, spec=replace(asked, features=features), call=call)


def _arguments(bench: Bench, spec: AttentionSpec, variant: _Variant, step: Step) -> dict[str, Any]:
    draw, where = bench.draw(), bench.device.torch_device
    num_stored = (1 if variant.takes_keys else 2) * spec.num_kv_heads
    width = (spec.num_heads + num_stored) * spec.head_dim
    qkv_TC = draw.normal(step.batch.num_tokens, width, dtype=spec.dtype)
    qkv_TC[step.num_real_tokens :] = torch.nan
    size = variant.rotary_size
    norm_dtype = torch.float32 if variant.has_wide_norm else spec.dtype
    norms = [draw.normal(spec.head_dim, dtype=norm_dtype) for _ in "qk"]
    asked = ("is_normed_last", "has_normed_values", "takes_keys")
    order = {name: True for name in asked if getattr(variant, name)}
    return order | {
        "qkv_TC": qkv_TC,
        "cos_sin_LC": rotary_table(spec.max_length, size, where) if size else None,
        "q_norm_D": norms[0] if variant.has_norm else None,
        "k_norm_D": norms[1] if variant.has_norm else None,
        "num_heads": spec.num_heads,
        "num_kv_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "eps": 1e-6,
        "is_interleaved": variant.is_interleaved,
    }


def _written(provider: AttentionProvider, kv: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Return the keys and values that the step's real tokens have in ``kv``."""
    return provider.read(kv, step.batch.write_slots_T[: step.num_real_tokens])
