"""Cases of latent attention: ragged steps, checked against keys and values made of every latent.

Pages that no token was written to, and all that belongs to padding, hold not-a-numbers: a provider
that reads past a row's length shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from headstock.ops.attention import page_format_of
from headstock.ops.cases.attention import Rows, prefill_batch, row_mixes
from headstock.ops.cases.base import Bench, Case, Draw
from headstock.ops.cases.batches import Step, make_step
from headstock.ops.cases.rotary import rotary_table
from headstock.ops.device import OpDevice
from headstock.ops.latent import LatentProvider, LatentSpec, latent_attention


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentInputs:
    """Queries of a step, what is cached of all its rows' tokens, and the heads' matrices.

    Attributes:
        q_THQ: Padding tokens included, as not-a-numbers.
        cached_rows: Of each real row, all its tokens. [kv length, X]
        up_HUC: Of every head.
        chosen_Tk: What queries read; None: all tokens.
    """

    q_THQ: Tensor
    cached_rows: list[Tensor]
    up_HUC: Tensor
    chosen_Tk: Tensor | None = None


def plain_latent_spec(dtype: torch.dtype, page_size: int) -> LatentSpec:
    """Return latent attention of 4 heads in small sizes that differ from each other."""
    return LatentSpec(
        num_heads=4,
        latent_size=64,
        rotary_size=16,
        key_size=32,
        value_size=48,
        dtype=dtype,
        kv_dtype=dtype,
        page_size=page_size,
        scale=48**-0.5,
        max_length=1024,
        max_rows=32,
        max_tokens=512,
    )


def latent_cases(bench: Bench) -> Iterator[Case]:
    """Yield steps over row mixes, page sizes, head counts and the sizes of real models."""
    device = bench.device
    for page_size in bench.page_sizes:
        spec = plain_latent_spec(bench.dtype, page_size)
        for label, rows, options in row_mixes(page_size):
            yield latent_case(f"{label}, pages of {page_size}", spec, rows, device, **options)
    plain = plain_latent_spec(bench.dtype, bench.page_sizes[0])
    page = plain.page_size
    mixed: Rows = [(7, 7), (1, page + 1), (5, 3 * page), (1, 1)]
    for heads in (1, 3, 16, 20):
        yield latent_case(f"{heads} heads", replace(plain, num_heads=heads), mixed, device)
    sizes = {"latent_size": 512, "rotary_size": 64, "key_size": 128, "value_size": 128}
    large = replace(plain, **sizes, num_heads=2, scale=192**-0.5)
    yield latent_case("sizes of DeepSeek V3", large, mixed, device)
    many = replace(large, num_heads=32)
    yield latent_case("32 heads in sizes of DeepSeek V3", many, mixed, device)
    decodes: Rows = [(1, length) for length in (1, page, 3 * page + 2)]
    yield latent_case("decode in sizes of DeepSeek V3", large, decodes, device, num_padding_rows=2)
    sizes = {"latent_size": 256, "rotary_size": 64, "key_size": 64, "value_size": 128}
    yield latent_case("sizes of Mistral 4", replace(plain, **sizes), mixed, device)
    yield latent_case("a prompt of some length", plain, [(300, 420), (1, 77)], device)
    ragged: Rows = [(6, 6), (1, 40), (page, 3 * page), (1, 1), (3, 2 * page + 1)]
    for count in (1, 5, 2048):
        spec = replace(plain, num_chosen=count)
        yield latent_case(f"{count} chosen tokens", spec, ragged, device, num_padding_rows=3)
    chosen = replace(large, num_chosen=24)
    yield latent_case("chosen tokens in the sizes of DeepSeek V3.2", chosen, mixed, device)


def latent_case(label: str, spec: LatentSpec, rows: Rows, device: OpDevice, **options: Any) -> Case:
    """Return the case of one step; ``options`` are those of ``make_step``."""
    step = make_step(rows, spec.page_size, device.torch_device, **options)
    inputs = make_latent_inputs(spec, step, device.torch_device, shared=options.get("shared", ()))

    def call(build: Callable[..., LatentProvider]) -> Tensor:
        provider = build(spec, device)
        kv = filled_latent_pages(provider, step, inputs)
        return attend_latents(provider, kv, step, inputs)

    return Case(
        label=label,
        spec=spec.as_spec(),
        call=call,
        expected=lambda: dense_latent_attention(spec, rows, inputs),
        num_real=step.num_real_tokens,
    )


def make_latent_inputs(
    spec: LatentSpec, step: Step, device: torch.device, *, shared: Any = ()
) -> LatentInputs:
    """Draw all of it; rows that share pages have the same cached tokens there."""
    draw, dtype = Draw(device, seed=1), spec.dtype
    q_THQ = draw.normal(
        step.batch.num_tokens, spec.num_heads, spec.key_size + spec.rotary_size, dtype=dtype
    )
    q_THQ[step.num_real_tokens :] = torch.nan
    rows = [draw.normal(len(slots), spec.cached_size, dtype=dtype) for slots in step.slots]
    for begin, end, kv_end in shared:
        for row in range(begin + 1, end):
            rows[row][:kv_end] = rows[begin][:kv_end]
    up_HUC = draw.normal(
        spec.num_heads,
        spec.key_size + spec.value_size,
        spec.latent_size,
        dtype=dtype,
        scale=spec.latent_size**-0.5,
    )
    chosen_Tk = draw_choices(spec, step, draw) if spec.num_chosen else None
    return LatentInputs(q_THQ=q_THQ, cached_rows=rows, up_HUC=up_HUC, chosen_Tk=chosen_Tk)


def draw_choices(spec: LatentSpec, step: Step, draw: Draw) -> Tensor:
    """Return some tokens for each query, of those up to itself; -1 where there are too few."""
    most = min(spec.num_chosen, step.batch.max_kv)
    chosen_Tk = torch.full((step.batch.num_tokens, most), -1, dtype=torch.int32)
    for token, position in enumerate(step.batch.positions_T.tolist()):
        order = torch.randperm(position + 1, generator=draw.generator)[:most]
        chosen_Tk[token, : len(order)] = order
    return chosen_Tk.to(draw.device)


def filled_latent_pages(provider: LatentProvider, step: Step, inputs: LatentInputs) -> Tensor:
    """Return pages with the tokens that earlier steps would have written, else not-a-numbers."""
    shape = provider.kv_shape(step.num_pages)
    kv = torch.empty(shape, dtype=page_format_of(provider).dtype, device=inputs.q_THQ.device)
    kv.fill_(torch.nan)
    for row, cached_LX in enumerate(inputs.cached_rows):
        num_queries, _ = step.batch.host_rows[row]
        for begin in range(0, len(cached_LX) - num_queries, 256):
            end = min(begin + 256, len(cached_LX) - num_queries)
            past = prefill_batch(step, row, begin, end)
            provider.plan(past)
            _write(provider, cached_LX[begin:end], inputs, kv, past)
    return kv


def attend_latents(
    provider: LatentProvider, kv: Tensor, step: Step, inputs: LatentInputs
) -> Tensor:
    """Run the step as a layer does: write its newest tokens, then attend. [T, H, V]"""
    host_rows = step.batch.host_rows[: step.num_real_rows]
    newest = [
        cached_LX[-num:] for cached_LX, (num, _) in zip(inputs.cached_rows, host_rows, strict=True)
    ]
    num_padding = step.batch.num_tokens - step.num_real_tokens
    padding = newest[0].new_full((num_padding, newest[0].shape[1]), torch.nan)
    provider.plan(step.batch)
    _write(provider, torch.cat([*newest, padding]), inputs, kv, step.batch)
    args = (inputs.q_THQ, inputs.up_HUC, kv, step.batch)
    if inputs.chosen_Tk is None:
        return provider.run(*args)
    return provider.run(*args, chosen_Tk=inputs.chosen_Tk)


def _write(
    provider: LatentProvider, cached_TX: Tensor, inputs: LatentInputs, kv: Tensor, batch: Any
) -> None:
    latent_size = inputs.up_HUC.shape[2]
    provider.write(cached_TX[:, :latent_size], cached_TX[:, latent_size:], kv, batch)


def dense_latent_attention(spec: LatentSpec, rows: Rows, inputs: LatentInputs) -> Tensor:
    """Make every head's keys and values, and attend row by row in float64. [real tokens, H, V]"""
    outs: list[Tensor] = []
    begin = 0
    up_HUC = inputs.up_HUC.double()
    for (num_queries, length), cached_LX in zip(rows, inputs.cached_rows, strict=True):
        latent_LC, turned_LE = cached_LX.double().split((spec.latent_size, spec.rotary_size), 1)
        made_HLU = torch.einsum("lc,huc->hlu", latent_LC, up_HUC)
        k_HLN, v_HLV = made_HLU.split((spec.key_size, spec.value_size), dim=2)
        k_HLQ = torch.cat((k_HLN, turned_LE.expand(spec.num_heads, -1, -1)), dim=2)
        q_HTQ = inputs.q_THQ[begin : begin + num_queries].double().transpose(0, 1)
        scores_HTL = q_HTQ @ k_HLQ.transpose(1, 2) * spec.scale
        seen_TL = torch.ones(length, length, device=scores_HTL.device).tril()[-num_queries:]
        if inputs.chosen_Tk is not None:
            chosen_Tk = inputs.chosen_Tk[begin : begin + num_queries].long()
            marked = torch.zeros(num_queries, length + 1, device=scores_HTL.device)
            marked.scatter_(1, torch.where(chosen_Tk < 0, length, chosen_Tk), 1.0)
            seen_TL = marked[:, :length]
        probs_HTL = scores_HTL.masked_fill(seen_TL == 0, -torch.inf).softmax(dim=-1)
        outs.append((probs_HTL @ v_HLV).transpose(0, 1))
        begin += num_queries
    return torch.cat(outs)


MIXED: Rows = [(7, 7), (1, 40), (5, 33), (1, 1)]


def rotate_and_write_cases(bench: Bench) -> Iterator[Case]:
    """Yield step shapes, both kinds of rotation, none, views and padding."""
    plain = plain_latent_spec(bench.dtype, bench.page_sizes[0])
    yield _prepare_case(bench, "one token", plain, [(1, 1)])
    yield _prepare_case(bench, "decode", plain, [(1, n) for n in (1, 16, 17, 90)])
    yield _prepare_case(bench, "mixed", plain, MIXED)
    yield _prepare_case(bench, "halves as pairs", plain, MIXED, is_interleaved=False)
    yield _prepare_case(bench, "no rotation", plain, MIXED, is_rotated=False)
    yield _prepare_case(bench, "padding rows", plain, MIXED, num_padding_rows=5)
    yield _prepare_case(bench, "7 heads", replace(plain, num_heads=7), MIXED)
    sizes = {"latent_size": 512, "rotary_size": 64, "key_size": 128, "value_size": 128}
    yield _prepare_case(bench, "sizes of DeepSeek V3", replace(plain, **sizes), MIXED)


def _prepare_case(
    bench: Bench,
    label: str,
    spec: LatentSpec,
    rows: Rows,
    *,
    is_interleaved: bool = True,
    is_rotated: bool = True,
    num_padding_rows: int = 0,
) -> Case:
    provider = bench.resolver.resolve(latent_attention, spec.as_spec())(spec, bench.device)
    where, draw = bench.device.torch_device, bench.draw()
    step = make_step(rows, spec.page_size, where, num_padding_rows=num_padding_rows)
    num_tokens, query_size = step.batch.num_tokens, spec.key_size + spec.rotary_size
    q_TC = draw.normal(num_tokens, spec.num_heads * query_size, dtype=spec.dtype)
    wide_TY = draw.normal(num_tokens, spec.cached_size + 24, dtype=spec.dtype)
    q_TC[step.num_real_tokens :] = torch.nan
    wide_TY[step.num_real_tokens :] = torch.nan
    norm_C = draw.normal(spec.latent_size, dtype=spec.dtype)
    table = rotary_table(spec.max_length, spec.rotary_size, where) if is_rotated else None

    def call(run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        kv = torch.zeros(
            provider.kv_shape(step.num_pages), dtype=page_format_of(provider).dtype, device=where
        )
        provider.plan(step.batch)
        q_THQ = run(
            q_TC.clone().unflatten(1, (spec.num_heads, query_size)),
            wide_TY[:, 24:],
            table,
            norm_C,
            kv,
            step.batch,
            provider=provider,
            eps=1e-6,
            is_interleaved=is_interleaved,
        )
        slots_T = step.batch.write_slots_T[: step.num_real_tokens]
        return q_THQ[: step.num_real_tokens], provider.read(kv, slots_T)

    sizes = {
        "num_heads": spec.num_heads,
        "latent_size": spec.latent_size,
        "rotary_size": spec.rotary_size if is_rotated else 0,
        "key_size": spec.key_size,
        "page_size": spec.page_size,
    }
    return Case(
        label=label, spec=bench.spec(sizes, page_format=page_format_of(provider).tag), call=call
    )
