"""Launches every Triton kernel as layers and steps do, at sizes of real models."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton.language as tl
from torch import Tensor

from headstock.ops.activation_kinds import GELU, GELU_TANH, RELU2, SILU, clipped_swiglu
from headstock.ops.attention import AttentionSpec, StepBatch
from headstock.ops.latent import LatentSpec
from headstock.ops.layouts import CanonicalLayout
from headstock.ops.linear import DENSE, FP8_GROUP, INT4_GROUP, INT8_GROUP, MXFP4, LinearSpec
from headstock.ops.moe import ExpertsSpec
from headstock.ops.routing import Routing as ExpertRouting
from headstock.ops.steps import Slots, StepInputs
from headstock_cuda.peer_sum import (
    ALIGNED,
    NUMBERS,
    NUMBERS_WARPS,
    WORDS,
    WORDS_WARPS,
    add_blocks,
    add_words,
)
from headstock_triton import fp8_blocks, gated_hopper, gemv, lora, moe, steps
from headstock_triton.activation import Activations
from headstock_triton.attention import provider as attention
from headstock_triton.drafts import Drafts
from headstock_triton.embedding import embedding_rows
from headstock_triton.encoder import Encoders
from headstock_triton.fp8 import Fp8Gate, quantize_rows
from headstock_triton.ints import FUSED_ROWS, build_int
from headstock_triton.latent import provider as latent
from headstock_triton.norm import Norms
from headstock_triton.rotary import Rotations
from headstock_triton.routing import Routing
from headstock_triton.sampling.argmax import Argmax
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import Logprobs
from headstock_triton.sampling.shaping import Shaping
from headstock_triton.scores import Scores
from headstock_triton.target import Target
from headstock_triton.wide_norm import WideNorms


class FakeDevice:
    torch_device = torch.device("cpu")
    capabilities = frozenset[str]()
    num_threads = 1


def batch_of(num_rows: int, num_tokens: int, nodes: int) -> StepBatch:
    def integers(*shape, dtype=torch.int32):
        return torch.zeros(shape, dtype=dtype)

    return StepBatch(
        num_tokens=num_tokens,
        num_rows=num_rows,
        max_query=num_tokens // num_rows,
        max_kv=4096,
        positions_T=integers(num_tokens, dtype=torch.int64),
        query_starts_R1=integers(num_rows + 1),
        kv_lengths_R=integers(num_rows),
        page_table_RP=integers(num_rows, 64),
        write_slots_T=integers(num_tokens, dtype=torch.int64),
        row_of_token_T=integers(num_tokens),
        counts=integers(3),
        tree_N4=integers(nodes, 4),
        host_rows=[],
    )


def compile_attention(
    target: Target,
    dtype: torch.dtype,
    heads: int,
    page_size: int,
    head_dim: int = 128,
    kv_dtype: torch.dtype | None = None,
    **features: object,
) -> None:
    spec = AttentionSpec(
        num_heads=heads,
        num_kv_heads=8,
        head_dim=head_dim,
        dtype=dtype,
        kv_dtype=kv_dtype or dtype,
        page_size=page_size,
        scale=head_dim**-0.5,
        max_length=4096,
        max_rows=64,
        max_tokens=512,
        **features,
    )
    sinks = torch.zeros(heads) if "sinks" in spec.features else None
    built = attention.PagedAttention(spec, FakeDevice())
    built._target = target
    built._hopper = attention.hopper_kernel(spec, target, heads // 8)
    kv = torch.zeros(built.kv_shape(4), dtype=built.page_format.dtype)
    for batch in (batch_of(1, 1, 0), batch_of(2, 256, 16), batch_of(2, 4096, 0)):
        built.plan(batch)
        tokens = batch.num_tokens
        q = torch.zeros((tokens, heads, head_dim), dtype=dtype)
        built.run(q, kv, batch, sinks_H=sinks)
        k = torch.zeros((tokens, 8, head_dim), dtype=dtype)
        built.write(k, k, kv, batch)
        built.read(kv, torch.zeros(2, dtype=torch.int64))
        if kv_dtype is not None:
            continue  # heads are rotated by themselves
        compile_rotations(Rotations(target), spec, kv, batch, built)


def compile_rotations(
    rotations: Rotations,
    spec: AttentionSpec,
    kv: torch.Tensor,
    batch: StepBatch,
    provider: attention.PagedAttention,
) -> None:
    """As most models prepare queries, keys and values, and as Gemma 4 and Hunyuan do."""
    heads, size, tokens = spec.num_heads, spec.head_dim, batch.num_tokens
    weight, table = torch.zeros(size, dtype=spec.dtype), torch.zeros((4096, size))
    both = {"num_heads": heads, "head_dim": size, "eps": 1e-6, "is_interleaved": False}
    plain = {"provider": provider, "num_kv_heads": 8, **both}
    q = torch.zeros((tokens, heads * size), dtype=spec.dtype)
    qk = torch.zeros((tokens, (heads + 8) * size), dtype=spec.dtype)
    qkv = torch.zeros((tokens, (heads + 16) * size), dtype=spec.dtype)
    rotations.rotate_and_write(qkv, table, weight, weight, kv, batch, **plain)
    rotations.rotate_and_write(qkv, table, weight, weight, kv, batch, is_normed_last=True, **plain)
    normed = {"has_normed_values": True, **plain}
    rotations.rotate_and_write(qkv, table, weight, weight, kv, batch, **normed)
    rotations.rotate_and_write(qk, table, weight, weight, kv, batch, takes_keys=True, **normed)
    rotations.rotate_queries(q, table, weight, batch.positions_T, **both)
    rotations.rotate_queries(q, table, weight.float(), batch.positions_T, **both)


def compile_latent(target: Target, dtype: torch.dtype, heads: int, page_size: int) -> None:
    spec = LatentSpec(
        num_heads=heads,
        latent_size=512,
        rotary_size=64,
        key_size=128,
        value_size=128,
        dtype=dtype,
        kv_dtype=dtype,
        page_size=page_size,
        scale=192**-0.5,
        max_length=4096,
        max_rows=64,
        max_tokens=512,
    )
    tuning = latent.tuning_of(spec, target)
    built = latent.PagedLatentAttention(spec, FakeDevice(), tuning)
    built._target = target
    kv = torch.zeros(built.kv_shape(4), dtype=dtype)
    up = torch.zeros((heads, 256, 512), dtype=dtype)
    for batch in (batch_of(1, 1, 0), batch_of(2, 64, 0)):
        built.plan(batch)
        q = torch.zeros((batch.num_tokens, heads, 192), dtype=dtype)
        built.run(q, up, kv, batch)
        new = torch.zeros((batch.num_tokens, 576), dtype=dtype)
        built.write(new[:, :512], new[:, 512:], kv, batch)
        latent.LatentRotations(target).rotate_and_write_latent(
            q,
            new,
            torch.zeros((4096, 64)),
            torch.zeros(512, dtype=dtype),
            kv,
            batch,
            provider=built,
            eps=1e-6,
            is_interleaved=True,
        )


def compile_scores(target: Target, dtype: torch.dtype) -> None:
    logits, scores = torch.zeros((2, 256), dtype=dtype), Scores(target)
    routing = ExpertRouting(
        k=8, scores="sigmoid", is_normalized=True, num_groups=8, groups_kept=4, group_best=2
    )
    scores.route_experts(logits, torch.zeros(256), routing=routing)
    scores.route_experts(logits[:, :160], None, routing=ExpertRouting(k=6, factor=16.0))
    x = torch.zeros((2, 1024), dtype=dtype)
    scores.add_shared(x, x, None)
    scores.add_shared(x, x, x[:, :1])


def compile_ints(target: Target, dtype: torch.dtype) -> None:
    sizes = ((INT4_GROUP, 1024, 128), (INT8_GROUP, 1024, 32), (INT4_GROUP, 480, 48))
    for layout, in_features, group_size in sizes:
        spec = LinearSpec(
            in_features=in_features,
            out_features=1024,
            dtype=dtype,
            layout=layout,
            group_size=group_size,
        )
        built = build_int(spec, FakeDevice())
        built._target = target
        for num_rows in (1, 2, 16, 64, FUSED_ROWS, FUSED_ROWS + 1):
            built(torch.zeros((num_rows, in_features), dtype=dtype))
        built.rows(torch.zeros(2, dtype=torch.int64), 0)


def compile_fp8(target: Target, dtype: torch.dtype) -> None:
    """As GPUs do whose vendor library does not scale group by group."""
    spec = LinearSpec(
        in_features=1024,
        out_features=1024,
        dtype=dtype,
        layout=FP8_GROUP,
        group_size=128,
        has_bias=True,
    )
    built = fp8_blocks.BlockFp8Linear(spec, FakeDevice())
    built._target = target
    for num_rows in (1, 2, 64, 256):
        built(torch.zeros((num_rows, 1024), dtype=dtype))


def compile_encoders(target: Target, zeros) -> None:
    encoders, ids = Encoders(target), torch.zeros(2, dtype=torch.int64)
    starts = torch.zeros(3, dtype=torch.int32)
    for size in (384, 1024):
        encoders.layer_norm(zeros(2, size), zeros(size), None, eps=1e-6)
        encoders.add_layer_norm(zeros(2, size), zeros(2, size), zeros(size), zeros(size), eps=1e-6)
        encoders.embed_places(
            ids, ids, zeros(9, size), zeros(9, size), zeros(2, size), first_place=0
        )
        for kind in ("last", "mean", "cls"):
            encoders.pool_rows(zeros(9, size), starts, ids, kind=kind, is_normalized=True)


def compile_rest(target: Target, dtype: torch.dtype) -> None:
    def zeros(*shape, dtype=dtype):
        return torch.zeros(shape, dtype=dtype)

    norms = Norms(target)
    for size in (1024, 4096):
        norms.rms_norm(zeros(2, size), zeros(size), eps=1e-6)
        wide = zeros(size, dtype=torch.float32)
        norms.add_rms_norm(zeros(2, size), zeros(2, size), wide, eps=1e-6)
        norms.add_rms_norm(zeros(2, size), zeros(2, size), zeros(size), eps=1e-6)
    sums = WideNorms(target).sum_squares(zeros(2, 6144), q_size=4096, k_size=1024)
    wide_norms = {"q_width": 4096, "k_width": 1024, "eps": 1e-6}
    WideNorms(target).norm_queries_and_keys(
        zeros(2, 6144), sums, zeros(4096), zeros(1024), **wide_norms
    )
    Activations(target).silu_and_mul(zeros(2, 6144))
    Activations(target).silu_and_mul(zeros(2, 6144), activation=GELU_TANH)
    Activations(target).activate_and_mul(zeros(2, 256), zeros(2, 256), activation=GELU_TANH)
    Activations(target).soft_cap(zeros(2, 6144, dtype=torch.float32), cap=30.0)
    Activations(target).activate(zeros(2, 6144), activation=GELU)
    compile_encoders(target, zeros)
    Argmax(target).argmax_tokens(zeros(2, 151936))
    for vocab_size in (1, 151936):
        compile_sampling(target, vocab_size)
    if target.arch >= 90:
        for num_rows in (1, 256):
            quantize_rows(zeros(num_rows, 4096), target)
            Fp8Gate(target).silu_and_mul_groups(zeros(num_rows, 4096), group_size=128)
    if target.has_wgmma:
        gated_hopper.gated(zeros(1024, 1024), zeros(2048, 1024), target.num_sms)
    for num_rows in (1, 2, 4):
        gemv.gemv(zeros(num_rows, 4096), zeros(4096, 4096), None, target)
    for factor in (1.0, 32.0):
        embedding_rows(zeros(64, 1024), zeros(2, dtype=torch.int64), 0, target, factor)
    step = steps.Steps(target)
    step.last_of_rows(zeros(4, 1024), zeros(3, dtype=torch.int32))
    step.keep_rows(zeros(4, 1024), zeros(4, 1024))
    step.keep_rows(*(zeros(2, 151936, dtype=torch.float32) for _ in range(2)))
    drawn = zeros(2, dtype=torch.int64)
    step.mark_faults(drawn, zeros(2, 512, dtype=torch.float32))
    compile_table(step, target)


def compile_lora(target: Target, dtype: torch.dtype) -> None:
    for num_tokens, num_in, sizes, rank in (
        (17, 1024, (1024, 512, 512), 16),
        (300, 4096, (6144,), 48),
    ):
        out, inner = sum(sizes), len(sizes) * rank
        lora.LowRank(target).add_lora(
            torch.zeros(num_tokens, out, dtype=dtype),
            torch.zeros(num_tokens, num_in, dtype=dtype),
            torch.zeros(4, inner, num_in, dtype=dtype),
            torch.zeros(4, out, rank, dtype=dtype),
            torch.zeros(num_tokens, dtype=torch.int32),
            starts=tuple(sum(sizes[:part]) for part in range(len(sizes))),
        )


def compile_table(step: steps.Steps, target: Target) -> None:
    """Compile what reads and writes the slot table: with one group and several, drafts or none."""
    ints, longs = torch.zeros(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int64)
    floats = torch.zeros(64, dtype=torch.float32)
    for num_drafts, num_groups in ((0, 1), (3, 3)):
        pages = torch.zeros(64, 8, dtype=torch.int32)
        slots = Slots(
            **dict.fromkeys(("lengths_S", "last_ids_S", "done_S", "max_outputs_S"), ints),
            **dict.fromkeys(("min_outputs_S", "top_k_S", "adapters_S"), ints),
            **dict.fromkeys(("seeds_S", "num_outputs_S"), longs),
            **dict.fromkeys(("temperature_S", "top_p_S", "min_p_S"), floats),
            **dict.fromkeys(("repetition_S", "frequency_S", "presence_S"), floats),
            stop_ids_SE=pages,
            drafts_SK=torch.zeros(64, num_drafts, dtype=torch.int32),
            tables=(pages,) * num_groups,
            page_sizes=(64, 16, 0)[:num_groups],
            cursor_1=longs[:1],
        )
        inputs = StepInputs(
            slots_R=ints[:4],
            draw_slots_R=ints[:4],
            num_draws_R=ints[:4],
            query_starts_R1=ints[:5],
            host_ids_T=ints,
        )
        batch = StepBatch(
            num_tokens=64,
            num_rows=4,
            max_query=64,
            max_kv=512,
            positions_T=longs,
            query_starts_R1=ints[:5],
            kv_lengths_R=ints[:4],
            page_table_RP=pages[:4],
            write_slots_T=longs,
            row_of_token_T=ints,
            counts=ints[:3],
            tree_N4=pages[:0, :4],
            host_rows=[],
            adapters_R=ints[:4] if num_drafts else None,
        )
        batch.groups = (batch,) * num_groups
        step.place_step(slots, inputs, longs, batch)
        step.advance_lengths(slots, inputs, batch)
        drawn = torch.zeros(4, num_drafts + 1, dtype=torch.int64)
        outbox = torch.zeros(4, 4, 2 + num_drafts + 1, dtype=torch.int32)
        step.settle_step(drawn, ints[:4], slots, inputs, outbox)
        if num_drafts:
            compile_drafts(target, slots, inputs, drawn)


def compile_drafts(target: Target, slots: Slots, inputs: StepInputs, drawn: Tensor) -> None:
    drafting, num_drafts = Drafts(target), drawn.shape[1] - 1
    rows, histories = inputs.draw_slots_R, torch.zeros(8, 4096, dtype=torch.int32)
    outbox = torch.zeros(4, 4, 3 + num_drafts + 1, dtype=torch.int32)
    drafting.spread_draws(rows, slots.num_outputs_S, num_draws=num_drafts + 1)
    drafting.accept_drafts(drawn, slots.drafts_SK[:4], rows)
    drafting.keep_accepted(drawn, rows)
    drafting.count_drafts(torch.zeros(16, 1000, dtype=torch.int32), slots.drafts_SK[:4])
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.zeros(8, 4096, dtype=dtype)
        drafting.take_draws(hidden, inputs.query_starts_R1, rows, num_draws=num_drafts + 1)
    drafting.append_outputs(histories, slots, inputs, outbox)
    drafts = drafting.draft_ngrams(histories, rows, rows, max_n=4, min_n=2, num_drafts=num_drafts)
    drafting.enter_drafts(drafts, slots, inputs, outbox, vocab_size=1000)


def compile_sampling(target: Target, vocab_size: int) -> None:
    logits, floats = torch.zeros(2, vocab_size), torch.zeros(2)
    ints, longs = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    counts, wide = logits.to(torch.int32), torch.zeros((2, 1024), dtype=torch.int64)
    Argmax(target).argmax_tokens(logits)
    Draws(target).draw_tokens(logits, floats, ints, floats, floats, longs, longs)
    shaping = Shaping(target)
    shaping.apply_penalties(logits, counts, counts.bool(), floats, floats, floats)
    shaping.add_bias(logits, wide, wide.float())
    shaping.apply_masks(logits, ints[:, None])
    for k in (0, 5, 32):
        Logprobs(target).token_logprobs(logits, longs, wide, k=k)


def compile_moe(
    target: Target, dtype: torch.dtype, layout: CanonicalLayout, group_size: int
) -> None:
    spec = ExpertsSpec(
        hidden_size=256,
        intermediate_size=384,
        num_experts=128,
        experts_per_token=8,
        dtype=dtype,
        layout=layout,
        group_size=group_size,
        has_bias=layout == MXFP4,
        activation=clipped_swiglu(7.0, 1.702) if layout == MXFP4 else SILU,
    )
    Routing(target).route_topk(torch.zeros((2, 128), dtype=dtype), k=8, is_normalized=True)
    chosen = torch.zeros((2, 8), dtype=torch.int32)
    Routing(target).weigh_experts(torch.zeros((2, 8)), chosen, torch.zeros(128))
    tunings = (
        (moe.FEW, moe.SOME, moe.MANY, moe.MOST, moe.LARGEST)
        if layout == DENSE
        else (moe.FEW, moe.MANY)
    )
    if dtype == torch.float32:
        tunings = (moe.halved(moe.FEW), moe.halved(moe.SOME))
    for tuning in tunings:
        built = moe.FusedExperts(spec, FakeDevice(), tuning)
        built._target, built._routing = target, Routing(target)
        for num_tokens in (2, 128):
            x = torch.zeros((num_tokens, 256), dtype=dtype)
            ids = torch.zeros((num_tokens, 8), dtype=torch.int32)
            built(x, torch.zeros((num_tokens, 8)), ids)
    plain = moe.FusedExperts(replace(spec, is_gated=False, activation=RELU2), FakeDevice())
    plain._target, plain._routing = target, Routing(target)
    x, ids = torch.zeros((2, 256), dtype=dtype), torch.zeros((2, 8), dtype=torch.int32)
    plain(x, torch.zeros((2, 8)), ids)


def compile_peer_sum(size: int) -> None:
    """Of bfloat16, as the first of ``size`` ranks."""
    x = torch.zeros(8, dtype=torch.bfloat16)
    state = [torch.zeros(8, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int32)]
    ranks = {"MOST_BLOCKS": 64, "RANK": 0, "SIZE": size}
    add_words[(1,)](
        x.view(torch.int16),
        *state,
        4096,
        **ranks,
        TYPE=tl.bfloat16,
        WORDS=WORDS,
        num_warps=WORDS_WARPS,
    )
    add_blocks[(1,)](
        x,
        *state,
        4096,
        **ranks,
        BLOCKS_AT=1 << 20,
        FLAGS_AT=1 << 21,
        NUMBERS=NUMBERS,
        ALIGNED=ALIGNED,
        num_warps=NUMBERS_WARPS,
    )
