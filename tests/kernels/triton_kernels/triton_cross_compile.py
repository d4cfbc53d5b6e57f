"""Compile every Triton kernel for a GPU that is not here: `python … cuda 90 [--usage]`.

For one by AMD, `python … hip gfx942`.

Launches are caught on their way: what would run is compiled for the target with the arguments'
types instead, so that the signatures are those of real calls. Run as a process of its own, since
Triton chooses between interpreter and compiler when it is imported.
"""

# ruff: noqa: T201 - a script
from __future__ import annotations

import argparse
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import JITFunction

from headstock.ops.activation_kinds import GELU_TANH, SILU, clipped_swiglu
from headstock.ops.attention import AttentionSpec, StepBatch
from headstock.ops.latent import LatentSpec
from headstock.ops.linear import DENSE, FP8_GROUP, INT4_GROUP, INT8_GROUP, MXFP4, LinearSpec
from headstock.ops.linear_attention import DeltaWeights, LinearAttentionSpec
from headstock.ops.moe import ExpertsSpec
from headstock.ops.routing import Routing as ExpertRouting
from headstock.ops.steps import Slots, StepInputs
from headstock_triton import dense, gated_hopper, gemv, moe, steps
from headstock_triton.activation import Activations
from headstock_triton.attention import provider as attention
from headstock_triton.embedding import embedding_rows
from headstock_triton.fp8 import Fp8Gate, quantize_rows
from headstock_triton.ints import FUSED_ROWS, build_int
from headstock_triton.latent import provider as latent
from headstock_triton.linear_attention import Gates, TritonLinearAttention
from headstock_triton.norm import Norms
from headstock_triton.rotary import Rotations
from headstock_triton.routing import Routing
from headstock_triton.sampling.argmax import Argmax
from headstock_triton.sampling.draw import Draws
from headstock_triton.sampling.logprobs import Logprobs
from headstock_triton.sampling.shaping import Shaping
from headstock_triton.scores import Scores
from headstock_triton.target import HOPPER, Target

TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
}


class Compiler:
    """Stands in for ``JITFunction.run``."""

    def __init__(self, target: GPUTarget, shows_usage: bool) -> None:
        self.target = target
        self.shows_usage = shows_usage
        self.seen: set[object] = set()
        self.count = 0

    def __call__(self, kernel, *args, grid, warmup, **kwargs):
        names = [p.name for p in kernel.params]
        bound = dict(zip(names, args, strict=False))
        bound |= {k: v for k, v in kwargs.items() if k in names}
        options = {k: v for k, v in kwargs.items() if k not in names}
        signature, constants, attributes = {}, {}, {}
        for index, param in enumerate(kernel.params):
            value = bound[param.name]
            if param.is_constexpr or value is None:
                signature[param.name] = "constexpr"
                constants[(index,)] = value
            elif isinstance(value, torch.Tensor):
                signature[param.name] = "*" + TYPES[value.dtype]
                attributes[(index,)] = [["tt.divisibility", 16]]
            elif value == 1 and param.name not in (kernel.do_not_specialize or ()):
                # Triton makes a constant of it, which has fewer methods than a number.
                signature[param.name] = "constexpr"
                constants[(index,)] = value
            elif isinstance(value, int):
                signature[param.name] = "i32"
                if value % 16 == 0 and param.name not in (kernel.do_not_specialize or ()):
                    attributes[(index,)] = [["tt.divisibility", 16]]
            elif isinstance(value, float):
                signature[param.name] = "fp32"
            else:
                block = ",".join(map(str, value.block_shape))
                layout = f",{value.layout!r}" if kernel.is_gluon() else ""
                signature[param.name] = f"tensordesc<{TYPES[value.base.dtype]}[{block}]{layout}>"
        key = (kernel.__name__, str(signature), str(constants), str(attributes), str(options))
        if key in self.seen:
            return
        self.seen.add(key)
        if self.target.backend != "cuda" or self.target.arch < 90:
            options.pop("launch_pdl", None)
        build = GluonASTSource if kernel.is_gluon() else ASTSource
        source = build(kernel, signature, constants, attributes)
        compiled = triton.compile(source, target=self.target, options=options)
        if self.target.backend == "cuda":  # what the compiler could not make sense of
            assert "trap;" not in compiled.asm["ptx"], f"{kernel.__name__} is a trap: {constants}"
        self.count += 1
        if self.shows_usage:
            self.show(kernel.__name__, compiled, constants, kernel)

    def show(self, name, compiled, constants, kernel):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(compiled.asm["cubin"])
            tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
            usage = subprocess.run(
                [tool, "-res-usage", path], capture_output=True, text=True, check=False
            ).stdout
        line = [x for x in usage.splitlines() if "REG:" in x]
        regs = " ".join(w for w in line[0].split() if w.split(":")[0] in ("REG", "STACK", "LOCAL"))
        ptx = compiled.asm["ptx"]
        marks = [m for m in ("wgmma", "mma.sync", "cp.async.bulk", "cp.async") if m in ptx]
        named = {kernel.params[i[0]].name: v for i, v in constants.items()}
        blocks = {k: v for k, v in named.items() if k.startswith(("BLOCK", "STAGES", "TMA", "M"))}
        print(f"{name:26} {regs} shared {compiled.metadata.shared} {marks} {blocks}", flush=True)


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
    **features: object,
) -> None:
    spec = AttentionSpec(
        num_heads=heads,
        num_kv_heads=8,
        head_dim=head_dim,
        dtype=dtype,
        kv_dtype=dtype,
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
    kv = torch.zeros(built.kv_shape(4), dtype=dtype)
    for batch in (batch_of(1, 1, 0), batch_of(2, 256, 16), batch_of(2, 4096, 0)):
        built.plan(batch)
        tokens = batch.num_tokens
        q = torch.zeros((tokens, heads, head_dim), dtype=dtype)
        built.run(q, kv, batch, sinks_H=sinks)
        k = torch.zeros((tokens, 8, head_dim), dtype=dtype)
        built.write(k, k, kv, batch)
        built.read(kv, torch.zeros(2, dtype=torch.int64))
        weight = torch.zeros(head_dim, dtype=dtype)
        Rotations(target).rotate_and_write(
            torch.zeros((tokens, (heads + 16) * head_dim), dtype=dtype),
            torch.zeros((4096, head_dim)),
            weight,
            weight,
            kv,
            batch,
            provider=built,
            num_heads=heads,
            num_kv_heads=8,
            head_dim=head_dim,
            eps=1e-6,
            is_interleaved=False,
        )


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


def compile_delta(target: Target, dtype: torch.dtype) -> None:
    spec = LinearAttentionSpec(
        num_key_heads=16,
        num_value_heads=32,
        key_size=128,
        value_size=128,
        kernel_size=4,
        dtype=dtype,
        max_rows=64,
        max_tokens=512,
    )
    built, small = TritonLinearAttention(spec, FakeDevice()), torch.zeros(32)
    built._target = target
    weights = DeltaWeights(
        conv_CW=torch.zeros((spec.conv_size, 4), dtype=dtype), decay_V=small, bias_V=small
    )
    kv = torch.zeros(built.kv_shape(3))
    for batch in (batch_of(2, 2, 0), batch_of(2, 64, 0)):
        tokens = batch.num_tokens
        qkv = torch.zeros((tokens, spec.conv_size), dtype=dtype)
        ba = torch.zeros((tokens, 32), dtype=dtype)
        built.plan(batch)
        y = built.run(qkv, ba, ba, weights, kv, batch)
        Gates(target).gated_norm(y, y, torch.zeros(128, dtype=dtype), eps=1e-6)
        Gates(target).gate_features(ba, ba)


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


def compile_rest(target: Target, dtype: torch.dtype) -> None:
    def zeros(*shape, dtype=dtype):
        return torch.zeros(shape, dtype=dtype)

    norms = Norms(target)
    for size in (1024, 4096):
        norms.rms_norm(zeros(2, size), zeros(size), eps=1e-6)
        wide = zeros(size, dtype=torch.float32)
        norms.add_rms_norm(zeros(2, size), zeros(2, size), wide, eps=1e-6)
        norms.add_rms_norm(zeros(2, size), zeros(2, size), zeros(size), eps=1e-6)
    Activations(target).silu_and_mul(zeros(2, 6144))
    Activations(target).silu_and_mul(zeros(2, 6144), activation=GELU_TANH)
    Activations(target).soft_cap(zeros(2, 6144, dtype=torch.float32), cap=30.0)
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
    drawn = zeros(2, dtype=torch.int64)
    step.mark_faults(drawn, zeros(2, 512, dtype=torch.float32))
    compile_table(step)


def compile_table(step: steps.Steps) -> None:
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


def compile_sampling(target: Target, vocab_size: int) -> None:
    logits, floats = torch.zeros(2, vocab_size), torch.zeros(2)
    ints, longs = torch.zeros(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
    counts, wide = logits.to(torch.int32), torch.zeros((2, 1024), dtype=torch.int64)
    Argmax(target).argmax_tokens(logits)
    Draws(target).draw_tokens(logits, floats, ints, floats, floats, longs, longs)
    shaping = Shaping(target)
    shaping.apply_penalties(logits, counts, counts.bool(), floats, floats, floats)
    shaping.add_bias(logits, wide, wide.float())
    for k in (0, 5, 32):
        Logprobs(target).token_logprobs(logits, longs, wide, k=k)


def compile_moe(target: Target, dtype: torch.dtype, layout: str, group_size: int) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("backend")
    parser.add_argument("arch")
    parser.add_argument("--usage", action="store_true")
    options = parser.parse_args()
    backend = options.backend
    is_cuda = backend == "cuda"
    arch = int(options.arch) if is_cuda else 0
    built_for = GPUTarget(backend, arch or options.arch, 32 if is_cuda else 64)
    compiler = Compiler(built_for, options.usage)
    JITFunction.run = lambda kernel, *args, **kwargs: compiler(kernel, *args, **kwargs)
    has, is_hopper = arch >= 90, arch == HOPPER
    target = Target(
        kind=backend, arch=arch, num_sms=132, has_pdl=has, has_tma=has, has_wgmma=is_hopper
    )
    assert dense is not None
    assert replace(target, num_sms=1).arch == arch
    compile_attention(target, torch.bfloat16, 32, 64)
    compile_attention(target, torch.bfloat16, 16, 64)
    compile_attention(target, torch.bfloat16, 32, 16)
    window, sinks, cap = "sliding_window", "sinks", "soft_cap"
    with_window = {"features": frozenset({window, sinks}), "window": 128}
    compile_attention(target, torch.bfloat16, 64, 64, 64, **with_window)
    compile_attention(target, torch.bfloat16, 16, 64, 256, features=frozenset({cap}), soft_cap=50.0)
    wide = {"features": frozenset({window, cap}), "window": 1024, "soft_cap": 50.0}
    compile_attention(target, torch.bfloat16, 16, 64, 256, **wide)
    for heads, page_size in ((128, 64), (16, 64), (20, 16)):
        compile_latent(target, torch.bfloat16, heads, page_size)
    compile_scores(target, torch.bfloat16)
    compile_delta(target, torch.bfloat16)
    compile_ints(target, torch.bfloat16)
    compile_rest(target, torch.bfloat16)
    compile_moe(target, torch.float32, DENSE, 0)
    layouts = ((DENSE, 0), (INT8_GROUP, 32), (INT4_GROUP, 32), (MXFP4, 32), (FP8_GROUP, 128))
    for layout, group_size in layouts:
        # The compiler for gfx942 stops with an assertion of its own at four-bit floats.
        is_known = is_cuda or layout != MXFP4
        if is_known and (layout != FP8_GROUP or target.arch >= 90):
            compile_moe(target, torch.bfloat16, layout, group_size)
    print(f"{compiler.count} kernels compiled for {backend} {options.arch}")


if __name__ == "__main__":
    main()
